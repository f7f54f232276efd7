#include "checkpoint/json_file.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "boost/json/parse.hpp"
#include "boost/json/serialize.hpp"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

constexpr size_t kMaxShownBytes = 60;

std::string Shown(const boost::json::value& value) {
  std::string text = boost::json::serialize(value);
  if (text.size() > kMaxShownBytes) {
    text.resize(kMaxShownBytes);
    text += "...";
  }
  return text;
}

std::optional<int64_t> IntegerIn(const boost::json::value& value, int64_t min, int64_t max) {
  const int64_t* integer = value.if_int64();  // the parser keeps what fits as int64
  if (integer == nullptr || *integer < min || *integer > max) {
    return std::nullopt;
  }
  return *integer;
}

std::string RangeText(int64_t min, int64_t max) {
  return fmt::format("a whole number from {} to {}", min, max);
}

}  // namespace

JsonFile::JsonFile(std::string path, std::string prefix, boost::json::object object)
    : path_(std::move(path)), prefix_(std::move(prefix)), object_(std::move(object)) {}

absl::StatusOr<JsonFile> JsonFile::Load(const std::string& path, int64_t max_bytes) {
  std::error_code error;
  const auto size_bytes = std::filesystem::file_size(path, error);
  if (error) {
    return absl::NotFoundError(fmt::format("{}: {}", path, error.message()));
  }
  if (size_bytes > static_cast<uintmax_t>(max_bytes)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: has {} bytes, the limit is {}", path, size_bytes, max_bytes));
  }
  std::ifstream stream(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(stream)),
                         std::istreambuf_iterator<char>());
  if (!stream.is_open() || stream.bad()) {
    return absl::InvalidArgumentError(fmt::format("{}: cannot be read", path));
  }
  return Parse(text, path);
}

absl::StatusOr<JsonFile> JsonFile::Parse(std::string_view text, std::string path) {
  boost::json::error_code error;
  boost::json::value value =
      boost::json::parse(boost::json::string_view(text.data(), text.size()), error);
  if (error) {
    return absl::InvalidArgumentError(fmt::format("{}: is no JSON: {}", path, error.message()));
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: must hold a JSON object, but holds {}", path, Shown(value)));
  }
  return JsonFile(std::move(path), "", std::move(value.get_object()));
}

const boost::json::value* JsonFile::Find(std::string_view field) const {
  const boost::json::value* value =
      object_.if_contains(boost::json::string_view(field.data(), field.size()));
  return value == nullptr || value->is_null() ? nullptr : value;
}

absl::Status JsonFile::Wrong(std::string_view field, std::string_view what) const {
  return absl::InvalidArgumentError(
      fmt::format("{}: field '{}{}' {}", path_, prefix_, field, what));
}

absl::Status JsonFile::Unsupported(std::string_view field, std::string_view what) const {
  return absl::UnimplementedError(fmt::format("{}: field '{}{}' {}", path_, prefix_, field, what));
}

absl::Status JsonFile::WrongType(std::string_view field,
                                 std::string_view expected,
                                 const boost::json::value* found) const {
  if (found == nullptr) {
    return Wrong(field, fmt::format("is missing, it must be {}", expected));
  }
  return Wrong(field, fmt::format("must be {}, but is {}", expected, Shown(*found)));
}

absl::StatusOr<int64_t> JsonFile::Integer(std::string_view field,
                                          int64_t min,
                                          int64_t max,
                                          std::optional<int64_t> fallback) const {
  const boost::json::value* value = Find(field);
  if (value == nullptr && fallback.has_value()) {
    return *fallback;
  }
  if (value != nullptr) {
    if (const auto integer = IntegerIn(*value, min, max); integer.has_value()) {
      return *integer;
    }
  }
  return WrongType(field, RangeText(min, max), value);
}

absl::StatusOr<double> JsonFile::Positive(std::string_view field,
                                          std::optional<double> fallback) const {
  const boost::json::value* value = Find(field);
  if (value == nullptr && fallback.has_value()) {
    return *fallback;
  }
  if (value != nullptr && value->is_number()) {
    boost::json::error_code error;
    const auto number = value->to_number<double>(error);
    if (!error && std::isfinite(number) && number > 0) {
      return number;
    }
  }
  return WrongType(field, "a number above zero", value);
}

absl::StatusOr<bool> JsonFile::Bool(std::string_view field, bool fallback) const {
  const boost::json::value* value = Find(field);
  if (value == nullptr) {
    return fallback;
  }
  if (const bool* boolean = value->if_bool()) {
    return *boolean;
  }
  return WrongType(field, "true or false", value);
}

absl::StatusOr<std::string> JsonFile::String(std::string_view field,
                                             std::optional<std::string> fallback) const {
  const boost::json::value* value = Find(field);
  if (value == nullptr && fallback.has_value()) {
    return *std::move(fallback);
  }
  if (value != nullptr && value->is_string()) {
    return std::string(value->get_string());
  }
  return WrongType(field, "a string", value);
}

absl::StatusOr<std::string> JsonFile::FileName(std::string_view field) const {
  ZP_ASSIGN_OR_RETURN(std::string name, String(field));
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    return Wrong(field, fmt::format("is '{}', which is no plain file name", name));
  }
  return name;
}

absl::StatusOr<std::vector<int64_t>> JsonFile::Integers(std::string_view field,
                                                        int64_t min,
                                                        int64_t max) const {
  std::vector<int64_t> integers;
  const boost::json::value* value = Find(field);
  if (value == nullptr) {
    return integers;
  }
  const std::string expected = fmt::format("a list, each element {}", RangeText(min, max));
  if (!value->is_array()) {
    return WrongType(field, expected, value);
  }
  for (const boost::json::value& element : value->get_array()) {
    const auto integer = IntegerIn(element, min, max);
    if (!integer.has_value()) {
      return WrongType(field, expected, value);
    }
    integers.push_back(*integer);
  }
  return integers;
}

absl::StatusOr<std::vector<std::string>> JsonFile::Strings(std::string_view field) const {
  std::vector<std::string> strings;
  const boost::json::value* value = Find(field);
  if (value == nullptr) {
    return strings;
  }
  if (!value->is_array()) {
    return WrongType(field, "a list of strings", value);
  }
  for (const boost::json::value& element : value->get_array()) {
    if (!element.is_string()) {
      return WrongType(field, "a list of strings", value);
    }
    strings.emplace_back(element.get_string());
  }
  return strings;
}

absl::StatusOr<JsonFile> JsonFile::Object(std::string_view field) const {
  const boost::json::value* value = Find(field);
  std::string prefix = fmt::format("{}{}.", prefix_, field);
  if (value == nullptr) {
    return JsonFile(path_, std::move(prefix), {});
  }
  if (!value->is_object()) {
    return WrongType(field, "an object", value);
  }
  return JsonFile(path_, std::move(prefix), value->get_object());
}

}  // namespace zp::checkpoint
