#include "text/json_part.h"

#include <new>

#include "base/status.h"
#include "boost/json/monotonic_resource.hpp"
#include "boost/json/parse_options.hpp"
#include "boost/json/stream_parser.hpp"
#include "fmt/format.h"

namespace zp::text {
namespace {

constexpr size_t kMaxDepth = 32;
constexpr size_t kMaxFileBytes = size_t{256} << 20;  // the largest known is 33 MB

boost::json::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

absl::StatusOr<boost::json::value> ParseJson(std::string_view json, std::string_view name) {
  if (json.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} bytes, the limit is {}", name, json.size(), kMaxFileBytes));
  }
  boost::json::parse_options options;
  options.max_depth = kMaxDepth;
  try {
    boost::json::stream_parser parser(
        boost::json::make_shared_resource<boost::json::monotonic_resource>(), options);
    boost::json::error_code error;
    const size_t parsed_bytes = parser.write_some(json.data(), json.size(), error);
    if (!error) parser.finish(error);
    if (error || parsed_bytes != json.size()) {
      return absl::InvalidArgumentError(fmt::format("{}: not JSON at byte {}: {}",
                                                    name,
                                                    parsed_bytes,
                                                    error ? error.message() : "trailing text"));
    }
    return parser.release();
  } catch (const std::exception& failure) {
    return absl::InvalidArgumentError(fmt::format("{}: not JSON: {}", name, failure.what()));
  }
}

absl::Status JsonPart::Invalid(std::string_view what) const {
  return absl::InvalidArgumentError(fmt::format("{}: {}", where_, what));
}

absl::Status JsonPart::Unsupported(std::string_view what) const {
  return absl::UnimplementedError(fmt::format("{}: {} is not supported", where_, what));
}

std::optional<JsonPart> JsonPart::Find(std::string_view key) const {
  const auto* object = value_->if_object();
  if (object == nullptr) return std::nullopt;
  const boost::json::value* member = object->if_contains(View(key));
  if (member == nullptr || member->is_null()) return std::nullopt;
  return JsonPart(*member, fmt::format("{}.{}", where_, key));
}

absl::StatusOr<JsonPart> JsonPart::Get(std::string_view key) const {
  if (!value_->is_object()) return Invalid("must be an object");
  if (auto member = Find(key)) return *std::move(member);
  return Invalid(fmt::format("lacks \"{}\"", key));
}

absl::StatusOr<std::string> JsonPart::GetString(std::string_view key) const {
  ZP_ASSIGN_OR_RETURN(const JsonPart member, Get(key));
  return member.String();
}

absl::StatusOr<bool> JsonPart::GetBool(std::string_view key) const {
  ZP_ASSIGN_OR_RETURN(const JsonPart member, Get(key));
  return member.Bool();
}

absl::StatusOr<bool> JsonPart::GetBool(std::string_view key, bool absent) const {
  const std::optional<JsonPart> member = Find(key);
  if (!member) return absent;
  return member->Bool();
}

absl::StatusOr<int64_t> JsonPart::GetInt(std::string_view key) const {
  ZP_ASSIGN_OR_RETURN(const JsonPart member, Get(key));
  return member.Int();
}

absl::StatusOr<std::vector<JsonPart>> JsonPart::Elements(std::string_view key) const {
  ZP_ASSIGN_OR_RETURN(const JsonPart member, Get(key));
  const auto* array = member.value().if_array();
  if (array == nullptr) return member.Invalid("must be an array");
  std::vector<JsonPart> elements;
  elements.reserve(array->size());
  for (size_t i = 0; i < array->size(); ++i) {
    elements.emplace_back((*array)[i], fmt::format("{}[{}]", member.where(), i));
  }
  return elements;
}

absl::StatusOr<std::string> JsonPart::String() const {
  const auto* string = value_->if_string();
  if (string == nullptr) return Invalid("must be a string");
  return std::string(string->data(), string->size());
}

absl::StatusOr<bool> JsonPart::Bool() const {
  const bool* boolean = value_->if_bool();
  if (boolean == nullptr) return Invalid("must be true or false");
  return *boolean;
}

absl::StatusOr<int64_t> JsonPart::Int() const {
  const int64_t* number = value_->if_int64();
  if (number == nullptr) return Invalid("must be an integer");
  return *number;
}

}  // namespace zp::text
