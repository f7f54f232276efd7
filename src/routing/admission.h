// Whether there is time for a work: admission in seconds of work.
//
// Separate from the choice of a rank: a policy says where, this says whether. A work is admitted
// when some rank would be through with it within the limit: the queue limit, or the work's own
// deadline where that is sooner. A request with many inputs is one work and so one decision for its
// total.
//
// Thread safety: pure function.
#pragma once

#include <chrono>
#include <optional>
#include <span>

#include "base/status.h"
#include "routing/routing_policy.h"

namespace zp::routing {

struct AdmissionOptions {
  // How many seconds of work may be outstanding at the rank that would be through first, this work
  // included.
  double max_backlog_seconds = 30;
};

// DeadlineExceeded when the deadline has passed. ResourceExhausted, with
// protocol::kRetrySecondsPayload: the seconds after which what waits now at one of the ranks will
// have drained. Not those after which this work would fit: where more comes than can be served,
// others take that room first. A rank with nothing to do takes any work, and so does one whose
// speed is not known yet. REQUIRES: `ranks` is not empty.
absl::Status Admit(const AdmissionOptions& options,
                   std::span<const RankView> ranks,
                   std::chrono::steady_clock::time_point now,
                   std::optional<std::chrono::steady_clock::time_point> deadline);

}  // namespace zp::routing
