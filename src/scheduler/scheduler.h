// A rank's queue and its serving loop: works of many clients become batches, batches go through the
// engine one after the other, each work gets its answer. Which works run in which pass is decided
// by BatchQueue (order, bound of waiting, priorities, deadlines: there).
//
// While a pass runs, the next batch is formed and the answers of the one before are given: what
// lies between two passes is to take what is ready. A work too large for one pass is served over
// several; if a piece of it fails, the rest is not computed. What is computed ahead for the prefix
// cache answers nothing and so fails nothing: what is not held then, the answer computes.
//
// Thread safety: every method from any thread. Two internal threads: one owns the engine's Run and
// calls on_report, the other forms batches and calls every `done`. A `done` must be quick (hand the
// answer to another thread) and may call Submit. Ownership: the engine must outlive the scheduler.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/engine.h"
#include "protocol/block_chain.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "scheduler/batch_queue.h"
#include "scheduler/rank_speed.h"
#include "scheduler/scheduler_metrics.h"
#include "scheduler/work_parts.h"

namespace zp::scheduler {

struct SchedulerOptions {
  int32_t rank = 0;  // names the scheduler in the metrics
  // Distinct tokens of one pass, see BatchQueueOptions.
  int64_t max_batch_tokens = BatchQueueOptions{}.max_batch_tokens;
  // Tokens of one sequence; above max_batch_tokens it runs alone. Bounds the memory of a pass.
  int64_t max_sequence_tokens = 65'536;
  // Works are taken, each as a whole, while fewer tokens wait. Then Submit refuses and says when to
  // come again.
  int64_t max_queue_tokens = 2'097'152;
  // How long a batch that does not hide its gathers may wait for company.
  std::chrono::milliseconds max_hold{0};
  double ageing = BatchQueueOptions{}.ageing;
  uint64_t block_key = 0;  // names prefixes, see BlockHasher; the engine's
  // Tokens that the engine's prefix cache holds, for one salt; 0: there is none. Of works that are
  // small against it the long beginnings are computed ahead of the rest, over several passes.
  int64_t cache_tokens = 0;
  // How much of such a beginning a pass computes; at least T*. Less: shorter passes, and so shorter
  // waits for others; more: fewer passes, each of which costs more than its tokens.
  int64_t ahead_tokens = 512;
  protocol::OnRankReport on_report = nullptr;  // may be null
};

class Scheduler : public protocol::WorkSink {
 public:
  Scheduler(engine::Engine& engine, const SchedulerOptions& options);
  // Closes the gate, lets the running pass end, answers what still waits with Unavailable.
  ~Scheduler() override;
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // See WorkSink. Validates first: a work that the engine would refuse never enters the queue.
  absl::Status Submit(protocol::Work work, std::stop_token cancel, Done done) override;
  absl::Status CheckRoom(std::optional<std::chrono::steady_clock::time_point> deadline) override;

 private:
  using Clock = std::chrono::steady_clock;

  // What was accepted and is not answered yet.
  struct Request {
    protocol::Work work;  // sequences that went into a pass are moved out
    WorkCuts cuts;
    Done done;
    Clock::time_point arrival;
    int64_t waiting_tokens = 0;
    WorkAssembly assembly;
  };

  // What goes through the engine of a request.
  struct RunningWork {
    uint64_t id = 0;
    WorkPiece piece;
    double queue_seconds = 0;
  };

  struct Pass {
    std::vector<RunningWork> works;
    int64_t distinct_tokens = 0;
    double asked_flops = 0;
    protocol::AwaitedChanges awaited;
    double seconds = 0;
    std::vector<absl::StatusOr<protocol::WorkResult>> answers;  // of the works
  };

  using Answers = std::vector<std::pair<Done, absl::StatusOr<protocol::WorkResult>>>;

  absl::Status CheckSequences(const protocol::Work& work) const;
  PlanLimits Limits() const;
  // Of the serving thread.
  void Serve();
  std::optional<Pass> WaitForPass();
  void Run(Pass& pass);
  // Of the answering thread.
  void Attend();
  void Give(Answers answers, std::unique_lock<std::mutex>& lock);
  // The rest with mutex_ held.
  absl::Status CheckQueue() const;
  double OutstandingFlops() const { return queue_.waiting_flops() + running_flops_; }
  Pass TakePass(Clock::time_point now);
  RunningWork TakeWork(const TakenWork& taken, Clock::time_point now);
  void WaitFor(std::unique_lock<std::mutex>& lock,
               std::condition_variable& changed,
               std::optional<Clock::time_point> time);
  bool HasToPrepare() const { return is_running_ && !queue_.is_prepared() && !queue_.empty(); }
  void RemoveFailed(const Pass& pass);
  Answers AnswerDropped();
  Answers AnswerPass(Pass pass);
  Answers RefuseWaiting();
  Done Close(uint64_t id);
  void PublishQueueSize();

  engine::Engine& engine_;
  const SchedulerOptions options_;
  const protocol::BlockHasher hasher_;
  HeldBlocks held_blocks_;
  SchedulerMetrics metrics_;

  mutable std::mutex mutex_;
  std::condition_variable serving_changed_;    // for the serving thread
  std::condition_variable answering_changed_;  // for the answering thread
  // All below are guarded by mutex_.
  BatchQueue queue_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Request>> requests_;
  std::deque<Pass> finished_;  // not answered yet
  RankSpeed speed_;
  uint64_t next_id_ = 1;
  int64_t queue_tokens_ = 0;
  double running_flops_ = 0;
  bool is_running_ = false;
  std::optional<Clock::time_point> last_pass_end_;
  bool stopping_ = false;
  bool serving_ended_ = false;

  // Last: everything they use is there before they start.
  std::thread serving_thread_;
  std::thread answering_thread_;
};

}  // namespace zp::scheduler
