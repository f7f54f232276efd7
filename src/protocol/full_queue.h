// What whoever refuses a work for want of room says: admission, and the queue of a rank.
//
// Thread safety: pure function.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace zp::protocol {

// ResourceExhausted with kRetrySecondsPayload: `why`, and that what waits will have drained in
// about so many seconds, to the nearest and at least one (decision 0023).
absl::Status FullQueue(std::string_view why, double drained_s);

}  // namespace zp::protocol
