// A rank's queue and its serving loop: works of many clients become batches, batches go through the
// engine one after the other, each work gets its answer.
//
// A batch takes works in the order they came until their distinct tokens (a shared prefix counts
// once) reach the limit; the next one gathers in the queue while this one runs. Strictly first in,
// first out: nobody starves. A work too large for one pass is served over several.
//
// Thread safety: every method from any thread. One internal thread owns the engine's Run and calls
// every `done`; a `done` must be quick (hand the answer to another thread) and may call Submit.
// Ownership: the engine must outlive the scheduler.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "scheduler/scheduler_metrics.h"
#include "scheduler/work_parts.h"

namespace zp::scheduler {

struct SchedulerOptions {
  int32_t rank = 0;  // names the scheduler in the metrics
  // Distinct tokens of one pass. More gives each expert more rows per pass, and each client a
  // longer wait for the pass before its own.
  int64_t max_batch_tokens = 16'384;
  // Tokens of one sequence; above max_batch_tokens it runs alone. Bounds the memory of a pass.
  int64_t max_sequence_tokens = 65'536;
  // Tokens that may wait. Beyond, Submit refuses and says when to come again.
  int64_t max_queue_tokens = 2'097'152;
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

  // How long the work that waits and runs will take at the speed measured so far.
  double backlog_seconds() const;

  // Closes the gate and waits until all that was accepted is answered; false if that took longer
  // than until `deadline`.
  bool Drain(std::chrono::steady_clock::time_point deadline);

 private:
  using Clock = std::chrono::steady_clock;

  struct Entry {
    WorkPart part;
    std::stop_token cancel;
    Done done;
    int64_t asked_tokens = 0;
    Clock::time_point arrival;
  };

  struct Batch {
    std::vector<Entry> entries;
    std::vector<Entry> cancelled;
    int64_t asked_tokens = 0;
    int64_t distinct_tokens = 0;
  };

  absl::Status CheckSequences(const protocol::Work& work) const;
  static std::vector<Entry> MakeEntries(std::vector<WorkPart> parts,
                                        const std::stop_token& cancel,
                                        Done done);
  absl::Status Enqueue(std::vector<Entry> entries, int64_t asked_tokens);
  void Serve();
  bool WaitForWork();
  Batch FormBatch();
  void RunBatch(Batch& batch);
  void LearnSpeed(int64_t asked_tokens, double seconds);
  void FinishBatch();
  void RefuseQueue();
  // The rest with mutex_ held.
  absl::Status CheckRoom(int64_t asked_tokens) const;
  double BacklogSeconds() const;
  void TakeCancelled(std::vector<Entry>& cancelled);
  void PublishQueueSize();

  engine::Engine& engine_;
  const SchedulerOptions options_;
  SchedulerMetrics metrics_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below are guarded by mutex_.
  std::deque<Entry> queue_;
  int64_t queue_tokens_ = 0;
  int64_t running_tokens_ = 0;
  bool busy_ = false;  // a batch is formed and not all of it is answered
  bool gate_closed_ = false;
  bool stopping_ = false;
  double tokens_per_second_ = 0;  // moving average over passes; 0 until the first

  std::thread thread_;  // last: everything it uses is there before it starts
};

}  // namespace zp::scheduler
