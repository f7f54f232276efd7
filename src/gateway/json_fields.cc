#include "gateway/json_fields.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/errors.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;

std::string_view View(const json::string& text) { return {text.data(), text.size()}; }

// The integer that a JSON number is; 2.0 is one, 2.5 and 1e300 are none.
std::optional<int64_t> ToInteger(const json::value& value) {
  if (value.is_int64()) {
    return value.get_int64();
  }
  constexpr double kExactLimit = 9007199254740992.0;  // 2^53
  if (value.is_double() && std::abs(value.get_double()) <= kExactLimit &&
      std::floor(value.get_double()) == value.get_double()) {
    return static_cast<int64_t>(value.get_double());
  }
  return std::nullopt;
}

bool IsNeutral(const json::value& value, int64_t neutral) {
  switch (value.kind()) {
    case json::kind::null:
      return true;
    case json::kind::bool_:
      return !value.get_bool();
    case json::kind::string:
      return value.get_string().empty();
    case json::kind::array:
      return value.get_array().empty();
    case json::kind::object:
      return value.get_object().empty();
    default:
      return ToInteger(value) == 0 || ToInteger(value) == neutral;
  }
}

std::string Element(std::string_view field, size_t index) {
  return fmt::format("{}[{}]", field, index);
}

}  // namespace

void Fields::Fail(std::string_view field, std::string_view problem) {
  if (status_.ok()) {
    status_ = FieldError(field, problem);
  }
}

const json::value* Fields::Find(std::string_view field) const {
  const json::value* value = object_.if_contains({field.data(), field.size()});
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool Fields::Has(std::string_view field) const { return Find(field) != nullptr; }

std::string_view Fields::OneOf(std::initializer_list<std::string_view> names) {
  const std::string_view first = *names.begin();
  std::string_view found;
  for (const std::string_view name : names) {
    if (!Has(name)) {
      continue;
    }
    if (!found.empty()) {
      Fail(name, fmt::format("and {} are the same field: give one of them", found));
    }
    found = name;
  }
  if (found.empty()) {
    std::string others;
    for (const std::string_view name : names) {
      others += name == first ? "" : fmt::format(" (or {})", name);
    }
    Fail(first, fmt::format("is required{}", others));
    return first;
  }
  return found;
}

std::string_view Fields::String(std::string_view field, std::string_view fallback) {
  const json::value* value = Find(field);
  if (value == nullptr) {
    return fallback;
  }
  if (!value->is_string()) {
    Fail(field, "must be a string");
    return fallback;
  }
  return View(value->get_string());
}

std::string_view Fields::ShortString(std::string_view field, size_t max_chars) {
  const std::string_view text = String(field, "");
  // Every byte of UTF-8 but those that continue a character begins one.
  const auto chars =
      static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
  if (chars > max_chars || (text.empty() && Has(field))) {
    Fail(field, fmt::format("must have 1 to {} characters", max_chars));
    return "";
  }
  return text;
}

bool Fields::Bool(std::string_view field, bool fallback) {
  const json::value* value = Find(field);
  if (value == nullptr) {
    return fallback;
  }
  if (!value->is_bool()) {
    Fail(field, "must be true or false");
    return fallback;
  }
  return value->get_bool();
}

int64_t Fields::Integer(std::string_view field, Range range, int64_t fallback) {
  const json::value* value = Find(field);
  if (value == nullptr) {
    return fallback;
  }
  const std::optional<int64_t> integer = ToInteger(*value);
  if (!integer.has_value() || *integer < range.min || *integer > range.max) {
    Fail(field, fmt::format("must be an integer from {} to {}", range.min, range.max));
    return fallback;
  }
  return *integer;
}

void Fields::Number(std::string_view field) {
  const json::value* value = Find(field);
  const bool is_number =
      value == nullptr || (value->is_number() && std::isfinite(value->to_number<double>()));
  if (!is_number) {
    Fail(field, "must be a number");
  }
}

const json::array* Fields::Array(std::string_view field, size_t max_count) {
  const json::value* value = Find(field);
  if (value == nullptr || !value->is_array()) {
    Fail(field, value == nullptr ? "is required" : "must be an array");
    return nullptr;
  }
  const json::array& array = value->get_array();
  if (array.empty()) {
    Fail(field, "is empty");
    return nullptr;
  }
  if (array.size() > max_count) {
    Fail(field, fmt::format("has {} elements; the limit is {}", array.size(), max_count));
    return nullptr;
  }
  return &array;
}

std::vector<std::string_view> Fields::Strings(std::string_view field, size_t max_count) {
  if (const json::value* value = Find(field); value != nullptr && value->is_string()) {
    return {View(value->get_string())};
  } else if (value != nullptr && !value->is_array()) {
    Fail(field, "must be a string or an array of strings");
    return {};
  }
  const json::array* array = Array(field, max_count);
  std::vector<std::string_view> strings;
  for (size_t i = 0; array != nullptr && i < array->size(); ++i) {
    const json::value& element = (*array)[i];
    if (!element.is_string()) {
      Fail(Element(field, i), "must be a string");
      break;
    }
    strings.push_back(View(element.get_string()));
  }
  return strings;
}

scoring::Tokens Fields::ReadTokens(std::string_view field,
                                   const json::array& array,
                                   int64_t vocab_count) {
  scoring::Tokens tokens;
  tokens.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    const std::optional<int64_t> token = ToInteger(array[i]);
    if (!token.has_value() || *token < 0 || *token >= vocab_count) {
      Fail(Element(field, i), fmt::format("must be a token id from 0 to {}", vocab_count - 1));
      return {};
    }
    tokens.push_back(static_cast<scoring::TokenId>(*token));
  }
  return tokens;
}

scoring::Tokens Fields::TokenIds(std::string_view field, size_t max_count, int64_t vocab_count) {
  const json::array* array = Array(field, max_count);
  return array == nullptr ? scoring::Tokens{} : ReadTokens(field, *array, vocab_count);
}

std::vector<Prompt> Fields::Prompts(std::string_view field, size_t max_count, int64_t vocab_count) {
  const std::string name(field);
  if (const json::value* value = Find(field); value != nullptr && value->is_string()) {
    return {Prompt{.field = name, .text = View(value->get_string())}};
  }
  const json::array* array = Array(field, std::string_view::npos);
  if (array == nullptr) {
    return {};
  }
  if (array->front().is_number()) {
    return {
        Prompt{.field = name, .tokens = ReadTokens(field, *array, vocab_count), .is_tokens = true}};
  }
  if (array->size() > max_count) {
    Fail(field, fmt::format("has {} elements; the limit is {}", array->size(), max_count));
    return {};
  }
  std::vector<Prompt> prompts;
  for (size_t i = 0; i < array->size(); ++i) {
    const json::value& element = (*array)[i];
    Prompt prompt{.field = Element(field, i), .is_tokens = element.is_array()};
    if (element.is_string()) {
      prompt.text = View(element.get_string());
    } else if (element.is_array()) {
      prompt.tokens = ReadTokens(prompt.field, element.get_array(), vocab_count);
    } else {
      Fail(prompt.field, "must be a string or an array of token ids");
      break;
    }
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

void Fields::Unsupported(std::string_view field, std::string_view reason, int64_t neutral) {
  const json::value* value = Find(field);
  if (value != nullptr && !IsNeutral(*value, neutral)) {
    Fail(field, fmt::format("is not supported: {}", reason));
  }
}

}  // namespace zp::gateway
