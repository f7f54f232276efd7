// Errors as clients of OpenAI-like servers expect them, and the one table from our codes to HTTP's.
//
// Thread safety: pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "gateway/message.h"

namespace zp::gateway {

// InvalidArgument about one field of the body: "max_tokens must be 0 or 1". The field's name
// travels with the status and comes out as the error object's `param`.
absl::Status FieldError(std::string_view field, std::string_view problem);

// The same for an error of another kind, whose message names the field by itself.
absl::Status WithField(absl::Status status, std::string_view field);

int HttpStatusOf(absl::StatusCode code);

// {"error":{"message","type","param","code"}}, with Retry-After where trying again makes sense:
// after what protocol::kRetrySecondsPayload says, else after a second.
Response ErrorResponse(const absl::Status& status);

// The same for failures that only HTTP knows (405, 413, 431).
Response ErrorResponse(int http_status, std::string_view code, std::string_view message);

}  // namespace zp::gateway
