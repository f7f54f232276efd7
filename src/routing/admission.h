// Whether there is time for a work: admission in seconds of work.
//
// Separate from the choice of a rank: a policy says where, this says whether. The queue limit is
// about what waits before a work and so the same for all: who is refused can be told before it is
// known what he wants (RequestRouter::CheckRoom), and a large work has the chance of a small one.
// A deadline is about the work's own answer. A request with many inputs is one work and so one
// decision for its total.
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
  // Works are taken while some rank has less than so many seconds of work outstanding.
  double max_backlog_seconds = 30;
};

// The work is admitted when some rank has less waiting than the queue limit and would be through
// with the work within the deadline. A rank with nothing to do takes any work, and so does one
// whose speed is not known yet.
//
// DeadlineExceeded when the deadline has passed. ResourceExhausted, with
// protocol::kRetrySecondsPayload: the seconds after which what waits now at one of the ranks will
// have drained. Not those after which there is room: where more comes than can be served, others
// take that room first. REQUIRES: `ranks` is not empty.
absl::Status Admit(const AdmissionOptions& options,
                   std::span<const RankView> ranks,
                   std::chrono::steady_clock::time_point now,
                   std::optional<std::chrono::steady_clock::time_point> deadline);

}  // namespace zp::routing
