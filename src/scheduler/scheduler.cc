#include "scheduler/scheduler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <utility>

#include "absl/strings/cord.h"
#include "base/check.h"
#include "base/logging.h"
#include "fmt/format.h"

namespace zp::scheduler {
namespace {

// Weight of the newest pass in the measured speed: a change of load shows after a few passes.
constexpr double kSpeedGain = 0.3;
// Assumed until the first pass is measured; only a refusal's advice depends on it.
constexpr double kFirstTokensPerSecond = 1000;

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

absl::Status ShuttingDown() { return absl::UnavailableError("the server is shutting down"); }

}  // namespace

Scheduler::Scheduler(engine::Engine& engine, const SchedulerOptions& options)
    : engine_(engine),
      options_(options),
      metrics_(std::to_string(options.rank), engine.spec()),
      thread_([this] { Serve(); }) {}

Scheduler::~Scheduler() {
  {
    std::lock_guard lock(mutex_);
    gate_closed_ = true;
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

absl::Status Scheduler::Submit(protocol::Work work, std::stop_token cancel, Done done) {
  ZP_RETURN_IF_ERROR(engine_.Validate(work));
  ZP_RETURN_IF_ERROR(CheckSequences(work));
  const int64_t asked_tokens = work.token_count();
  std::vector<WorkPart> parts = CutIntoParts(std::move(work), options_.max_batch_tokens);
  std::vector<Entry> entries = MakeEntries(std::move(parts), cancel, std::move(done));
  return Enqueue(std::move(entries), asked_tokens);
}

absl::Status Scheduler::CheckSequences(const protocol::Work& work) const {
  if (work.sequences.empty()) {
    return absl::InvalidArgumentError("the work has no sequences");
  }
  for (size_t i = 0; i < work.sequences.size(); ++i) {
    const auto token_count = static_cast<int64_t>(work.sequences[i].tokens.size());
    if (token_count > options_.max_sequence_tokens) {
      return absl::InvalidArgumentError(
          fmt::format("sequence {} has {} tokens, more than the limit of {} for one sequence",
                      i,
                      token_count,
                      options_.max_sequence_tokens));
    }
  }
  return absl::OkStatus();
}

// One per part; the work's `done` hears of them once all are answered.
std::vector<Scheduler::Entry> Scheduler::MakeEntries(std::vector<WorkPart> parts,
                                                     const std::stop_token& cancel,
                                                     Done done) {
  const Clock::time_point arrival = Clock::now();
  const auto assembly = std::make_shared<WorkAssembly>(parts.size(), std::move(done));
  std::vector<Entry> entries;
  entries.reserve(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t asked_tokens = parts[i].work.token_count();
    entries.push_back({.part = std::move(parts[i]),
                       .cancel = cancel,
                       .done =
                           [assembly, i](absl::StatusOr<protocol::WorkResult> answer) {
                             assembly->Answer(i, std::move(answer));
                           },
                       .asked_tokens = asked_tokens,
                       .arrival = arrival});
  }
  return entries;
}

// All parts or none.
absl::Status Scheduler::Enqueue(std::vector<Entry> entries, int64_t asked_tokens) {
  {
    std::lock_guard lock(mutex_);
    if (gate_closed_) {
      return ShuttingDown();
    }
    ZP_RETURN_IF_ERROR(CheckRoom(asked_tokens));
    queue_tokens_ += asked_tokens;
    std::move(entries.begin(), entries.end(), std::back_inserter(queue_));
    PublishQueueSize();
  }
  changed_.notify_all();
  return absl::OkStatus();
}

// An empty queue takes any work, so that none is refused for ever.
absl::Status Scheduler::CheckRoom(int64_t asked_tokens) const {
  if (queue_.empty() || queue_tokens_ + asked_tokens <= options_.max_queue_tokens) {
    return absl::OkStatus();
  }
  metrics_.refused.Increment();
  const auto retry_seconds = static_cast<int64_t>(std::ceil(std::max(1.0, BacklogSeconds())));
  absl::Status full = absl::ResourceExhaustedError(
      fmt::format("the queue is full: {} tokens wait, this request has {}, the limit is {}; it "
                  "will have drained in about {} s",
                  queue_tokens_,
                  asked_tokens,
                  options_.max_queue_tokens,
                  retry_seconds));
  full.SetPayload(protocol::kRetrySecondsPayload, absl::Cord(fmt::format("{}", retry_seconds)));
  return full;
}

double Scheduler::backlog_seconds() const {
  std::lock_guard lock(mutex_);
  return BacklogSeconds();
}

double Scheduler::BacklogSeconds() const {
  const double speed = tokens_per_second_ > 0 ? tokens_per_second_ : kFirstTokensPerSecond;
  return static_cast<double>(queue_tokens_ + running_tokens_) / speed;
}

bool Scheduler::Drain(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  gate_closed_ = true;
  return changed_.wait_until(lock, deadline, [this] { return queue_.empty() && !busy_; });
}

void Scheduler::Serve() {
  while (WaitForWork()) {
    Batch batch = FormBatch();
    for (Entry& entry : batch.cancelled) {
      metrics_.cancelled.Increment();
      entry.done(absl::CancelledError("the client left before the work started"));
    }
    if (!batch.entries.empty()) {
      RunBatch(batch);
    }
    FinishBatch();
  }
  RefuseQueue();
}

// False when it is time to stop.
bool Scheduler::WaitForWork() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
  return !stopping_;
}

Scheduler::Batch Scheduler::FormBatch() {
  std::lock_guard lock(mutex_);
  Batch batch;
  TakeCancelled(batch.cancelled);
  DistinctTokens distinct;
  while (!queue_.empty()) {
    Entry& next = queue_.front();
    const std::vector<TokenBlock> added = distinct.FindNew(next.part.blocks);
    if (!batch.entries.empty() &&
        distinct.count() + CountTokens(added) > options_.max_batch_tokens) {
      break;
    }
    distinct.Add(added);
    batch.asked_tokens += next.asked_tokens;
    batch.entries.push_back(std::move(next));
    queue_.pop_front();
  }
  batch.distinct_tokens = distinct.count();
  queue_tokens_ -= batch.asked_tokens;
  running_tokens_ = batch.asked_tokens;
  busy_ = true;
  PublishQueueSize();
  return batch;
}

void Scheduler::TakeCancelled(std::vector<Entry>& cancelled) {
  const auto first_cancelled =
      std::stable_partition(queue_.begin(), queue_.end(), [](const Entry& entry) {
        return !entry.cancel.stop_requested();
      });
  for (auto entry = first_cancelled; entry != queue_.end(); ++entry) {
    queue_tokens_ -= entry->asked_tokens;
    cancelled.push_back(std::move(*entry));
  }
  queue_.erase(first_cancelled, queue_.end());
}

void Scheduler::RunBatch(Batch& batch) {
  std::vector<const protocol::Work*> works;
  works.reserve(batch.entries.size());
  for (const Entry& entry : batch.entries) {
    works.push_back(&entry.part.work);
  }
  const Clock::time_point start = Clock::now();
  engine::BatchResult result = engine_.Run(works);
  const double pass_seconds = Seconds(Clock::now() - start);
  ZP_CHECK(result.works.size() == works.size()) << result.works.size() << " " << works.size();

  metrics_.RecordPass(result.report, batch.distinct_tokens, pass_seconds);
  LearnSpeed(batch.asked_tokens, pass_seconds);
  for (size_t i = 0; i < batch.entries.size(); ++i) {
    Entry& entry = batch.entries[i];
    absl::StatusOr<protocol::WorkResult>& answer = result.works[i];
    const double queue_seconds = Seconds(start - entry.arrival);
    metrics_.queue_seconds.Observe(queue_seconds);
    if (answer.ok()) {
      metrics_.answered.Increment();
      answer->usage.queue_seconds = queue_seconds;
      answer->usage.compute_seconds = pass_seconds;
    } else {
      metrics_.failed.Increment();
      base::log::warn(
          "work {} failed: {}", entry.part.work.request_id, base::MessageOf(answer.status()));
    }
    entry.done(std::move(answer));
  }
}

void Scheduler::LearnSpeed(int64_t asked_tokens, double seconds) {
  std::lock_guard lock(mutex_);
  const double speed = static_cast<double>(asked_tokens) / std::max(seconds, 1e-6);
  tokens_per_second_ =
      tokens_per_second_ > 0 ? (1 - kSpeedGain) * tokens_per_second_ + kSpeedGain * speed : speed;
}

void Scheduler::FinishBatch() {
  {
    std::lock_guard lock(mutex_);
    running_tokens_ = 0;
    busy_ = false;
  }
  changed_.notify_all();
}

// What still waits when the process stops.
void Scheduler::RefuseQueue() {
  std::deque<Entry> rest;
  {
    std::lock_guard lock(mutex_);
    rest.swap(queue_);
    queue_tokens_ = 0;
    PublishQueueSize();
  }
  for (Entry& entry : rest) {
    metrics_.unavailable.Increment();
    entry.done(ShuttingDown());
  }
}

void Scheduler::PublishQueueSize() {
  metrics_.queue_tokens.Set(static_cast<double>(queue_tokens_));
  metrics_.queue_requests.Set(static_cast<double>(queue_.size()));
}

}  // namespace zp::scheduler
