#include "gateway/errors.h"

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/cord.h"
#include "boost/json/object.hpp"
#include "fmt/format.h"
#include "gateway/json_text.h"
#include "protocol/full_queue.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;

constexpr char kFieldPayload[] = "zeroprefill/field";
constexpr int64_t kShortRetrySeconds = 1;  // where nobody knows how long it will take

struct CodeRow {
  absl::StatusCode code;
  int http_status;
  std::string_view name;
};

constexpr CodeRow kCodes[] = {
    {absl::StatusCode::kInvalidArgument, 400, "invalid_argument"},
    {absl::StatusCode::kOutOfRange, 400, "out_of_range"},
    {absl::StatusCode::kNotFound, 404, "not_found"},
    {absl::StatusCode::kResourceExhausted, 429, "resource_exhausted"},
    {absl::StatusCode::kCancelled, 499, "cancelled"},
    {absl::StatusCode::kInternal, 500, "internal"},
    {absl::StatusCode::kUnimplemented, 501, "unimplemented"},
    {absl::StatusCode::kUnavailable, 503, "unavailable"},
    {absl::StatusCode::kDeadlineExceeded, 504, "deadline_exceeded"},
};

const CodeRow& RowOf(absl::StatusCode code) {
  static constexpr CodeRow kUnknown = {absl::StatusCode::kUnknown, 500, "internal"};
  for (const CodeRow& row : kCodes) {
    if (row.code == code) {
      return row;
    }
  }
  return kUnknown;
}

std::string_view TypeOf(int http_status) {
  if (http_status == 429) {
    return "rate_limit_error";
  }
  if (http_status == 404) {
    return "not_found_error";
  }
  return http_status >= 500 ? "server_error" : "invalid_request_error";
}

std::optional<std::string> PayloadOf(const absl::Status& status, std::string_view key) {
  const absl::optional<absl::Cord> payload = status.GetPayload({key.data(), key.size()});
  return payload.has_value() ? std::optional<std::string>(*payload) : std::nullopt;
}

Response MakeResponse(int http_status,
                      std::string_view code,
                      std::string_view message,
                      const json::value& field,
                      int64_t retry_seconds = kShortRetrySeconds) {
  const json::object error = {{"message", ToValidUtf8(message)},
                              {"type", TypeOf(http_status)},
                              {"param", field},
                              {"code", code}};
  Response response{.status = http_status, .body = WriteJson(json::object{{"error", error}})};
  if (http_status == 429 || http_status == 503) {
    response.headers.emplace_back("Retry-After", std::to_string(retry_seconds));
  }
  return response;
}

}  // namespace

absl::Status FieldError(std::string_view field, std::string_view problem) {
  return WithField(absl::InvalidArgumentError(fmt::format("{} {}", field, problem)), field);
}

absl::Status WithField(absl::Status status, std::string_view field) {
  status.SetPayload(kFieldPayload, absl::Cord(std::string(field)));
  return status;
}

int HttpStatusOf(absl::StatusCode code) { return RowOf(code).http_status; }

Response ErrorResponse(const absl::Status& status) {
  const CodeRow& row = RowOf(status.code());
  const std::optional<std::string> field = PayloadOf(status, kFieldPayload);
  return MakeResponse(row.http_status,
                      row.name,
                      base::MessageOf(status),
                      field.has_value() ? json::value(ToValidUtf8(*field)) : json::value(nullptr),
                      protocol::RetrySecondsOf(status));
}

Response ErrorResponse(int http_status, std::string_view code, std::string_view message) {
  return MakeResponse(http_status, code, message, nullptr);
}

}  // namespace zp::gateway
