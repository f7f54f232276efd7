// The "normalizer" of a tokenizer.json.
//
// NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, StripAccents and Sequence; any other is
// Unimplemented. Thread safety: immutable after Parse.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "text/json_part.h"

namespace zp::text {

class Normalizer {
 public:
  static absl::StatusOr<std::unique_ptr<const Normalizer>> Parse(const JsonPart& part);
  virtual ~Normalizer() = default;

  // Nothing when it changes nothing. REQUIRES: valid UTF-8.
  virtual std::optional<std::string> Normalize(std::string_view text) const = 0;
};

}  // namespace zp::text
