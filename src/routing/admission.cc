#include "routing/admission.h"

#include <algorithm>
#include <limits>

#include "fmt/format.h"
#include "protocol/full_queue.h"

namespace zp::routing {
namespace {

constexpr double kForever = std::numeric_limits<double>::infinity();

}  // namespace

absl::Status Admit(const AdmissionOptions& options,
                   std::span<const RankView> ranks,
                   std::chrono::steady_clock::time_point now,
                   std::optional<std::chrono::steady_clock::time_point> deadline) {
  double left_s = kForever;
  if (deadline.has_value()) {
    left_s = std::chrono::duration<double>(*deadline - now).count();
    if (left_s <= 0) {
      return absl::DeadlineExceededError("the deadline had passed when the request came");
    }
  }
  double answered_s = kForever;
  double drained_s = kForever;
  for (const RankView& rank : ranks) {
    if (rank.outstanding.requests == 0 || rank.flops_per_s <= 0) {
      return absl::OkStatus();
    }
    const double rank_drained_s = rank.outstanding.flops / rank.flops_per_s;
    const double rank_answered_s = rank.total_flops() / rank.flops_per_s;
    if (rank_drained_s < options.max_backlog_seconds && rank_answered_s <= left_s) {
      return absl::OkStatus();
    }
    drained_s = std::min(drained_s, rank_drained_s);
    answered_s = std::min(answered_s, rank_answered_s);
  }
  const bool is_for_the_deadline = drained_s < options.max_backlog_seconds;
  return protocol::FullQueue(
      is_for_the_deadline
          ? fmt::format("this request would be answered in {:.1f} s, the limit is {:.1f} s",
                        answered_s,
                        left_s)
          : fmt::format("{:.1f} s of work wait, the limit is {:.1f} s",
                        drained_s,
                        options.max_backlog_seconds),
      drained_s);
}

}  // namespace zp::routing
