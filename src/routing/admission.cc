#include "routing/admission.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/cord.h"
#include "fmt/format.h"
#include "protocol/work.h"

namespace zp::routing {

absl::Status Admit(const AdmissionOptions& options,
                   std::span<const RankView> ranks,
                   std::chrono::steady_clock::time_point now,
                   std::optional<std::chrono::steady_clock::time_point> deadline) {
  double limit_s = options.max_backlog_seconds;
  if (deadline.has_value()) {
    const double left_s = std::chrono::duration<double>(*deadline - now).count();
    if (left_s <= 0) {
      return absl::DeadlineExceededError("the deadline had passed when the request came");
    }
    limit_s = std::min(limit_s, left_s);
  }
  double soonest_s = std::numeric_limits<double>::infinity();
  double drained_s = std::numeric_limits<double>::infinity();
  for (const RankView& rank : ranks) {
    if (rank.outstanding.requests == 0 || rank.flops_per_s <= 0) {
      return absl::OkStatus();
    }
    const double done_s = rank.total_flops() / rank.flops_per_s;
    if (done_s <= limit_s) {
      return absl::OkStatus();
    }
    soonest_s = std::min(soonest_s, done_s);
    drained_s = std::min(drained_s, rank.outstanding.flops / rank.flops_per_s);
  }
  const auto retry_seconds = static_cast<int64_t>(std::ceil(std::max(1.0, drained_s)));
  absl::Status full = absl::ResourceExhaustedError(
      fmt::format("the queue is full: this request would be answered in {:.1f} s, the limit is "
                  "{:.1f} s; what waits will have drained in about {} s",
                  soonest_s,
                  limit_s,
                  retry_seconds));
  full.SetPayload(protocol::kRetrySecondsPayload, absl::Cord(fmt::format("{}", retry_seconds)));
  return full;
}

}  // namespace zp::routing
