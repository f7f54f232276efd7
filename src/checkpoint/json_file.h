// A JSON file whose fields are read by type, with errors that name the file, the field, what was
// expected and what was found.
//
// A field that is null counts as absent, as it does in Hugging Face's configs.
// Thread safety: immutable after Load.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "boost/json/object.hpp"

namespace zp::checkpoint {

class JsonFile {
 public:
  // Errors: NotFound, or InvalidArgument for a file above `max_bytes` or one that is no JSON
  // object.
  static absl::StatusOr<JsonFile> Load(const std::string& path, int64_t max_bytes);
  static absl::StatusOr<JsonFile> Parse(std::string_view text, std::string path);

  const std::string& path() const { return path_; }
  const boost::json::object& object() const { return object_; }
  bool Has(std::string_view field) const { return Find(field) != nullptr; }

  // Each getter: the field's value; where it is absent, `fallback`, or without one an error.
  absl::StatusOr<int64_t> Integer(std::string_view field,
                                  int64_t min,
                                  int64_t max,
                                  std::optional<int64_t> fallback = std::nullopt) const;
  // A finite number, above zero.
  absl::StatusOr<double> Positive(std::string_view field,
                                  std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(std::string_view field, bool fallback) const;
  absl::StatusOr<std::string> String(std::string_view field,
                                     std::optional<std::string> fallback = std::nullopt) const;
  // The name of a file beside this one: not hidden, no path.
  absl::StatusOr<std::string> FileName(std::string_view field) const;
  // Lists; an absent one is empty.
  absl::StatusOr<std::vector<int64_t>> Integers(std::string_view field,
                                                int64_t min,
                                                int64_t max) const;
  absl::StatusOr<std::vector<std::string>> Strings(std::string_view field) const;
  // The object in `field`, or an empty one; its errors name "field.inner".
  absl::StatusOr<JsonFile> Object(std::string_view field) const;

  // An error about a field of this file: "<path>: field '<field>' <what>".
  absl::Status Wrong(std::string_view field, std::string_view what) const;
  absl::Status Unsupported(std::string_view field, std::string_view what) const;

 private:
  JsonFile(std::string path, std::string prefix, boost::json::object object);
  const boost::json::value* Find(std::string_view field) const;  // nullptr: absent or null
  absl::Status WrongType(std::string_view field,
                         std::string_view expected,
                         const boost::json::value* found) const;

  std::string path_;
  std::string prefix_;  // "" or "outer."
  boost::json::object object_;
};

}  // namespace zp::checkpoint
