#include "protocol/full_queue.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/cord.h"
#include "fmt/format.h"
#include "protocol/work.h"

namespace zp::protocol {

absl::Status FullQueue(std::string_view why, double drained_s) {
  const std::string seconds = fmt::format("{:.0f}", std::max(1.0, std::round(drained_s)));
  absl::Status full = absl::ResourceExhaustedError(fmt::format(
      "the queue is full: {}; what waits will have drained in about {} s", why, seconds));
  full.SetPayload(kRetrySecondsPayload, absl::Cord(seconds));
  return full;
}

}  // namespace zp::protocol
