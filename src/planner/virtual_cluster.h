// A trace through the router to many ranks in virtual time: the router, the queues and the caches
// are those that serve; only the passes are arithmetic (rank_model.h).
//
// Thread safety: one call, one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/status.h"
#include "planner/rank_model.h"
#include "planner/replay.h"
#include "planner/trace.h"
#include "planner/virtual_rank.h"
#include "routing/request_router.h"

namespace zp::planner {

struct VirtualClusterOptions {
  int32_t ranks = 8;
  VirtualRankOptions rank = {};
  routing::RouterOptions router = {};
  int32_t max_prompt_tokens = 1 << 20;
};

// Errors: those of the router.
absl::StatusOr<ReplayResult> ReplayVirtually(const Trace& trace,
                                             const ReplayPace& pace,
                                             const spec::ModelSpec& spec,
                                             const MachineModel& machine,
                                             const VirtualClusterOptions& options,
                                             std::unique_ptr<routing::RoutingPolicy> policy);

}  // namespace zp::planner
