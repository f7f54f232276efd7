// A named part of a JSON file: every complaint about it says where it stands.
//
// Boost.JSON stays behind this header and json_part.cc's ParseJson. Ownership: a JsonPart lends the
// document it was made from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "boost/json/value.hpp"

namespace zp::text {

// InvalidArgument names `name` and the offset.
absl::StatusOr<boost::json::value> ParseJson(std::string_view json, std::string_view name);

class JsonPart {
 public:
  // `where` stands in messages: "tokenizer.json: pre_tokenizer".
  JsonPart(const boost::json::value& value, std::string where)
      : value_(&value), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  absl::Status Invalid(std::string_view what) const;      // InvalidArgument
  absl::Status Unsupported(std::string_view what) const;  // Unimplemented

  // Members of an object. A missing member and null are the same to Find.
  absl::StatusOr<JsonPart> Get(std::string_view key) const;
  std::optional<JsonPart> Find(std::string_view key) const;
  absl::StatusOr<std::string> GetString(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key, bool absent) const;
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  // The member "type".
  absl::StatusOr<std::string> Type() const { return GetString("type"); }

  absl::StatusOr<std::vector<JsonPart>> Elements(std::string_view key) const;
  absl::StatusOr<std::string> String() const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<int64_t> Int() const;

  const boost::json::value& value() const { return *value_; }

 private:
  const boost::json::value* value_;
  std::string where_;
};

}  // namespace zp::text
