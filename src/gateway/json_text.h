// JSON text in and out, with the limits and the number format of this server.
//
// In: at most 32 levels deep, valid UTF-8, no lone surrogates, no trailing text. Of a key that
// stands twice in an object the last one counts, as in Python's and JavaScript's parsers.
// Out: numbers in the shortest form that reads back to the same double, so equal answers are equal
// text.
//
// Thread safety: pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "boost/json/value.hpp"

namespace zp::gateway {

// InvalidArgument says what is wrong and at which byte.
absl::StatusOr<boost::json::value> ParseJson(std::string_view text);

// A number that is not finite becomes null: JSON has none.
std::string WriteJson(const boost::json::value& value);

// Bytes that are not UTF-8 become U+FFFD, one per maximal broken piece (as in Python and browsers).
std::string ToValidUtf8(std::string_view bytes);

// How many characters start in `bytes` (every byte but UTF-8's continuation bytes).
int64_t CountCharacters(std::string_view bytes);

}  // namespace zp::gateway
