#include "protocol/full_queue.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "fmt/format.h"
#include "protocol/work.h"

namespace zp::protocol {
namespace {

// A rank whose speed was measured wrong is no reason to say a year.
constexpr double kLongestRetrySeconds = 24 * 3600;

}  // namespace

absl::Status FullQueue(std::string_view why, double drained_s) {
  const std::string seconds =
      fmt::format("{:.0f}", std::clamp(std::round(drained_s), 1.0, kLongestRetrySeconds));
  absl::Status full = absl::ResourceExhaustedError(fmt::format(
      "the queue is full: {}; what waits will have drained in about {} s", why, seconds));
  full.SetPayload(kRetrySecondsPayload, absl::Cord(seconds));
  return full;
}

int64_t RetrySecondsOf(const absl::Status& refusal) {
  const auto payload = refusal.GetPayload(kRetrySecondsPayload);
  int64_t seconds = 0;
  return payload.has_value() && absl::SimpleAtoi(std::string(*payload), &seconds) ? seconds : 1;
}

}  // namespace zp::protocol
