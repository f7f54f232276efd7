// What whoever refuses a work for want of room says: admission, and the queue of a rank.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"

namespace zp::protocol {

// ResourceExhausted with kRetrySecondsPayload: `why`, and that what waits will have drained in
// about so many seconds, to the nearest and at least one (decision 0023).
absl::Status FullQueue(std::string_view why, double drained_s);

// What a refusal says in kRetrySecondsPayload; one that says nothing: in a second.
int64_t RetrySecondsOf(const absl::Status& refusal);

}  // namespace zp::protocol
