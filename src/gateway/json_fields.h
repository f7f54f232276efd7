// Typed access to the fields of a request body: the one place where types and ranges are checked.
//
// Fields that nobody asks for are ignored. An absent field and a null one are the same. The first
// problem is kept and every later read gives a harmless value, so a parser reads all its fields in
// a row and checks status() once.
//
// Thread safety: none; one per request. Ownership: borrows the object; views point into it.
// Errors: InvalidArgument that names the field, see FieldError.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "boost/json/object.hpp"
#include "scoring/scoring.h"

namespace zp::gateway {

// A prompt as clients send it: text, or tokens already.
struct Prompt {
  std::string field;  // "prompt[3]", for errors
  std::string_view text = {};
  scoring::Tokens tokens = {};
  bool is_tokens = false;
};

struct Range {
  int64_t min = 0;
  int64_t max = 0;
};

class Fields {
 public:
  explicit Fields(const boost::json::object& object) : object_(object) {}

  const absl::Status& status() const { return status_; }
  void Fail(std::string_view field, std::string_view problem);

  bool Has(std::string_view field) const;
  // The one of `names` that is there (aliases of one field). Fails when none or several are.
  std::string_view OneOf(std::initializer_list<std::string_view> names);

  std::string_view String(std::string_view field, std::string_view fallback);
  // A string of 1 to max_chars characters; "" if the field is not there.
  std::string_view ShortString(std::string_view field, size_t max_chars);
  bool Bool(std::string_view field, bool fallback);
  int64_t Integer(std::string_view field, Range range, int64_t fallback);
  void Number(std::string_view field);  // any finite number; its value does not matter here

  // An array of strings, or one string.
  std::vector<std::string_view> Strings(std::string_view field, size_t max_count);
  // An array of token ids in [0, vocab_count).
  scoring::Tokens TokenIds(std::string_view field, size_t max_count, int64_t vocab_count);
  // str | [str] | [int] | [[int]]; an array of integers is one prompt. At least one.
  std::vector<Prompt> Prompts(std::string_view field, size_t max_count, int64_t vocab_count);

  // For options of other servers that would change the answer if they were heeded: anything but
  // absent, null, false, 0, "", [], {} or `neutral` fails with `reason`.
  void Unsupported(std::string_view field, std::string_view reason, int64_t neutral = 0);

 private:
  const boost::json::value* Find(std::string_view field) const;
  const boost::json::array* Array(std::string_view field, size_t max_count);
  scoring::Tokens ReadTokens(std::string_view field,
                             const boost::json::array& array,
                             int64_t vocab_count);

  const boost::json::object& object_;
  absl::Status status_;
};

}  // namespace zp::gateway
