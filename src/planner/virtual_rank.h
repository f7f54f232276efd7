// One rank in virtual time: the real queue, the real prefix cache, and instead of an engine the
// time that its passes would take.
//
// Thread safety: none. Ownership: the rank owns the works it is given until it returns them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvcache/prefix_cache.h"
#include "planner/rank_model.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "protocol/work_cost.h"
#include "scheduler/batch_queue.h"
#include "scheduler/held_blocks.h"
#include "scheduler/scheduler.h"
#include "scheduler/work_parts.h"

namespace zp::planner {

struct VirtualRankOptions {
  scheduler::BatchQueueOptions queue = {};
  int64_t cache_bytes = 0;
  uint64_t block_key = 0;
  int64_t ahead_tokens = scheduler::SchedulerOptions{}.ahead_tokens;
};

class VirtualRank {
 public:
  // `spec` and `model` must outlive the rank.
  static absl::StatusOr<std::unique_ptr<VirtualRank>> Create(const spec::ModelSpec& spec,
                                                             const RankModel& model,
                                                             const VirtualRankOptions& options);
  ~VirtualRank();

  // `id`: the caller's, unique among the works here.
  void Add(uint64_t id, protocol::Work work, scheduler::TimePoint now);

  bool is_running() const { return pass_ != nullptr; }
  // When the next pass wants to start; nullopt: nothing waits. Not while one runs.
  std::optional<scheduler::TimePoint> StartTime() const { return queue_.StartTime(); }
  // Starts a pass; its seconds, or nullopt if the queue wants to wait.
  std::optional<double> StartPass(scheduler::TimePoint now);

  struct FinishedPass {
    std::vector<uint64_t> answered;  // works of which nothing is left
    protocol::RankReport report;
    protocol::WorkCost cost;
    int64_t cached_tokens = 0;
    double seconds = 0;
    double exposed_wait_seconds = 0;
  };
  FinishedPass FinishPass();

 private:
  struct WorkHere {
    protocol::Work work;  // sequences that went into a pass are moved out
    scheduler::WorkCuts cuts;
  };
  struct Pass;

  int64_t CacheTokens() const;
  scheduler::BatchQueueOptions QueueOptions() const;
  scheduler::PlanLimits Limits() const;
  scheduler::WorkPiece TakePiece(const scheduler::TakenWork& taken);
  void AddCosts(Pass& pass) const;

  VirtualRank(const spec::ModelSpec& spec,
              const RankModel& model,
              const VirtualRankOptions& options,
              std::unique_ptr<kvcache::PrefixCache> cache);

  const spec::ModelSpec& spec_;
  const RankModel& model_;
  const VirtualRankOptions options_;
  const protocol::BlockHasher hasher_;
  std::unique_ptr<kvcache::PrefixCache> cache_;  // null: none
  scheduler::HeldBlocks held_blocks_;            // in it
  scheduler::BatchQueue queue_;
  absl::flat_hash_map<uint64_t, WorkHere> works_;
  std::unique_ptr<Pass> pass_;
};

}  // namespace zp::planner
