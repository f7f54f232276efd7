#include "text/split_pattern.h"

#include "base/status.h"
#include "fmt/format.h"

namespace zp::text {

absl::StatusOr<Regex> ParsePattern(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const JsonPart pattern, part.Get("pattern"));
  const bool literal = pattern.Find("String").has_value();
  ZP_ASSIGN_OR_RETURN(const std::string text, pattern.GetString(literal ? "String" : "Regex"));
  if (text.empty()) return pattern.Invalid("is empty");
  absl::StatusOr<Regex> regex = literal ? Regex::Literal(text) : Regex::Compile(text);
  if (regex.ok()) return regex;
  return absl::Status(regex.status().code(),
                      fmt::format("{}: {}", pattern.where(), base::MessageOf(regex.status())));
}

}  // namespace zp::text
