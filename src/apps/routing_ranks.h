// A trace through the router to real ranks of this process, as a server has them.
//
// Thread safety: one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "engine/host_model.h"
#include "planner/replay.h"
#include "planner/trace.h"
#include "routing/routing_policy.h"
#include "scheduler/scheduler.h"

namespace zp::apps {

struct RoutingRanksOptions {
  int32_t ranks = 2;
  spec::ModelSpec spec = {};  // weights are random
  spec::DType dtype = spec::DType::kBf16;
  int64_t cache_bytes = 0;  // of each rank
  int64_t max_batch_tokens = 16'384;
  int32_t max_prompt_tokens = 16'384;
  std::chrono::milliseconds max_hold{0};
};

class RoutingRanks {
 public:
  static absl::StatusOr<std::unique_ptr<RoutingRanks>> Load(const RoutingRanksOptions& options);

  // Every replay has fresh ranks: empty caches, nothing learnt. Fails where a request does.
  absl::StatusOr<planner::ReplayResult> Replay(const planner::Trace& trace,
                                               const planner::ReplayPace& pace,
                                               std::unique_ptr<routing::RoutingPolicy> policy);

  const std::string& kernels_name() const { return kernels_name_; }

 private:
  explicit RoutingRanks(const RoutingRanksOptions& options) : options_(options) {}

  const RoutingRanksOptions options_;
  std::shared_ptr<const engine::HostModel> host_model_;
  std::string kernels_name_;
};

}  // namespace zp::apps
