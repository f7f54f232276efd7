#include "scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/checksum.h"
#include "base/logging.h"
#include "fmt/format.h"
#include "protocol/full_queue.h"
#include "spec/flops.h"

namespace zp::scheduler {
namespace {

// Assumed until the first pass is measured; only a refusal's advice depends on it.
constexpr double kFirstTokensPerSecond = 1000;
// Passes whose answers may wait to be given before the serving thread waits, too.
constexpr size_t kMaxFinishedPasses = 2;

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

double FirstFlopsPerSecond(const spec::ModelSpec& spec) {
  return kFirstTokensPerSecond * spec::PassFlops(spec, {.token_count = 1});
}

absl::Status ShuttingDown() { return absl::UnavailableError("the server is shutting down"); }

absl::Status StatusOf(DropReason reason) {
  return reason == DropReason::kCancelled
             ? absl::CancelledError("the client left before the work was done")
             : absl::DeadlineExceededError("the time for this request was over before its turn");
}

}  // namespace

Scheduler::Scheduler(engine::Engine& engine, const SchedulerOptions& options)
    : engine_(engine),
      options_(options),
      hasher_(options.block_key),
      metrics_(std::to_string(options.rank), engine.spec()),
      queue_({.max_batch_tokens = options.max_batch_tokens,
              .max_hold = options.max_hold,
              .ageing = options.ageing,
              .held = &held_blocks_,
              .max_held_tokens = options.cache_tokens}),
      speed_(FirstFlopsPerSecond(engine.spec())),
      serving_thread_([this] { Serve(); }),
      answering_thread_([this] { Attend(); }) {}

Scheduler::~Scheduler() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  serving_changed_.notify_all();
  serving_thread_.join();
  answering_thread_.join();
}

absl::Status Scheduler::Submit(protocol::Work work, std::stop_token cancel, Done done) {
  ZP_RETURN_IF_ERROR(engine_.Validate(work));
  ZP_RETURN_IF_ERROR(CheckSequences(work));
  // Hashing is the costly part, and done before the lock.
  WorkPlan plan = PlanParts(engine_.spec(), hasher_, work, Limits());
  const int64_t asked_tokens = work.token_count();
  WaitingWork waiting = {.parts = std::move(plan.parts),
                         .ahead_count = static_cast<int32_t>(plan.cuts.ahead_ends.size()),
                         .arrival = Clock::now(),
                         .priority = work.priority,
                         .deadline = work.deadline,
                         .cancel = std::move(cancel)};
  const size_t sequence_count = work.sequences.size();
  auto request = std::make_unique<Request>(Request{.work = std::move(work),
                                                   .cuts = std::move(plan.cuts),
                                                   .done = std::move(done),
                                                   .arrival = waiting.arrival,
                                                   .waiting_tokens = asked_tokens,
                                                   .assembly = WorkAssembly(sequence_count)});
  std::lock_guard lock(mutex_);
  if (stopping_) {
    return ShuttingDown();
  }
  if (absl::Status full = CheckQueue(); !full.ok() && !request->work.is_resent) {
    metrics_.refused.Increment();
    return full;
  }
  const bool has_deadline = waiting.deadline.has_value();
  waiting.id = next_id_++;
  queue_tokens_ += asked_tokens;
  requests_[waiting.id] = std::move(request);
  queue_.Add(std::move(waiting));
  PublishQueueSize();
  if (!is_running_) {
    serving_changed_.notify_one();
  }
  if (has_deadline || HasToPrepare()) {
    answering_changed_.notify_one();
  }
  return absl::OkStatus();
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

PlanLimits Scheduler::Limits() const {
  PlanLimits limits = {.max_batch_tokens = options_.max_batch_tokens,
                       .max_held_tokens = options_.cache_tokens,
                       .held = &held_blocks_};
  if (options_.cache_tokens > 0) {
    std::lock_guard lock(mutex_);
    limits.ahead_tokens =
        AheadTokens(options_.ahead_tokens, speed_.saturation().tokens, options_.max_batch_tokens);
  }
  return limits;
}

absl::Status Scheduler::CheckRoom(std::optional<Clock::time_point> /*deadline*/) {
  // Who asks moves bytes for all clients: he does not wait while a batch is formed.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) {
    return absl::OkStatus();
  }
  return stopping_ ? ShuttingDown() : CheckQueue();
}

absl::Status Scheduler::CheckQueue() const {
  if (queue_tokens_ < options_.max_queue_tokens) {
    return absl::OkStatus();
  }
  return protocol::FullQueue(
      fmt::format("{} tokens wait, the limit is {}", queue_tokens_, options_.max_queue_tokens),
      speed_.SecondsFor(OutstandingFlops()));
}

void Scheduler::Serve() {
  while (std::optional<Pass> pass = WaitForPass()) {
    Run(*pass);
  }
  std::lock_guard lock(mutex_);
  serving_ended_ = true;
  answering_changed_.notify_one();
}

// Nothing when it is time to stop.
std::optional<Scheduler::Pass> Scheduler::WaitForPass() {
  std::unique_lock lock(mutex_);
  std::optional<Clock::time_point> hold_begin;
  bool has_waited = false;
  while (!stopping_) {
    const Clock::time_point now = Clock::now();
    const std::optional<Clock::time_point> start = queue_.StartTime();
    const bool is_answering_late = finished_.size() >= kMaxFinishedPasses;
    if (start.has_value() && *start <= now && !is_answering_late) {
      Pass pass = TakePass(now);
      if (pass.works.empty()) {
        continue;  // all that waited was dropped
      }
      metrics_.hold_seconds.Increment(Seconds(now - hold_begin.value_or(now)));
      if (!has_waited && last_pass_end_.has_value()) {
        metrics_.between_passes_seconds.Increment(Seconds(Clock::now() - *last_pass_end_));
      }
      return pass;
    }
    if (start.has_value() && !is_answering_late && !hold_begin.has_value()) {
      hold_begin = now;
    }
    has_waited = true;
    WaitFor(lock, serving_changed_, is_answering_late ? std::nullopt : start);
  }
  return std::nullopt;
}

void Scheduler::WaitFor(std::unique_lock<std::mutex>& lock,
                        std::condition_variable& changed,
                        std::optional<Clock::time_point> time) {
  if (time.has_value()) {
    changed.wait_until(lock, *time);
  } else {
    changed.wait(lock);
  }
}

Scheduler::Pass Scheduler::TakePass(Clock::time_point now) {
  Batch batch = queue_.Take(now);
  Pass pass = {.distinct_tokens = batch.distinct_tokens,
               .asked_flops = batch.asked_flops,
               .awaited = std::move(batch.awaited)};
  pass.works.reserve(batch.works.size());
  for (const TakenWork& taken : batch.works) {
    pass.works.push_back(TakeWork(taken, now));
  }
  is_running_ = !pass.works.empty();
  running_flops_ = pass.asked_flops;
  PublishQueueSize();
  answering_changed_.notify_one();  // the next batch, and what was dropped
  return pass;
}

Scheduler::RunningWork Scheduler::TakeWork(const TakenWork& taken, Clock::time_point now) {
  Request& request = *requests_.at(taken.id);
  RunningWork running = {.id = taken.id,
                         .piece = TakePiece(request.cuts, taken, request.work),
                         .queue_seconds = Seconds(now - request.arrival)};
  protocol::Work& work = running.piece.work;
  work.request_id = request.work.request_id;
  work.cache_salt = request.work.cache_salt;
  const int64_t tokens = running.piece.is_ahead ? 0 : work.token_count();
  request.waiting_tokens -= tokens;
  queue_tokens_ -= tokens;
  return running;
}

void Scheduler::Run(Pass& pass) {
  std::vector<const protocol::Work*> works;
  works.reserve(pass.works.size());
  for (const RunningWork& running : pass.works) {
    works.push_back(&running.piece.work);
  }
  engine_.Await(pass.awaited);
  const Clock::time_point start = Clock::now();
  metrics_.pass_start_time_seconds.SetToCurrentTime();
  engine::BatchResult result = engine_.Run(works);
  metrics_.pass_start_time_seconds.Set(0);
  const Clock::time_point end = Clock::now();
  pass.seconds = Seconds(end - start);
  ZP_CHECK(result.works.size() == works.size()) << result.works.size() << " " << works.size();
  pass.answers = std::move(result.works);

  protocol::RankReport report;
  {
    std::lock_guard lock(mutex_);
    speed_.Learn(result.report, pass.asked_flops, pass.seconds);
    const Saturation& saturation = speed_.saturation();
    queue_.SetSpeed(speed_.flops_per_s(), saturation.flops);
    report = {.flops_per_s = speed_.flops_per_s(),
              .compute_flops_per_s = speed_.compute_flops_per_s(),
              .saturation_flops = saturation.flops,
              .saturation_tokens = saturation.tokens};
  }
  held_blocks_.Apply(result.report.cache_events);
  metrics_.RecordPass(result.report, pass.distinct_tokens, pass.seconds);
  metrics_.saturation_tokens.Set(report.saturation_tokens);
  if (options_.on_report != nullptr) {
    report.cache = std::move(result.report.cache_events);
    options_.on_report(report);
  }
  std::lock_guard lock(mutex_);
  RemoveFailed(pass);
  running_flops_ = 0;
  is_running_ = false;
  last_pass_end_ = end;
  PublishQueueSize();
  finished_.push_back(std::move(pass));
  answering_changed_.notify_one();
}

// Before the next pass is taken: the rest of a work that failed is for nothing.
void Scheduler::RemoveFailed(const Pass& pass) {
  for (size_t i = 0; i < pass.works.size(); ++i) {
    if (!pass.answers[i].ok() && !pass.works[i].piece.is_ahead) {
      queue_.Remove(pass.works[i].id);
    }
  }
}

void Scheduler::Attend() {
  std::unique_lock lock(mutex_);
  while (true) {
    queue_.DropExpired(Clock::now());
    if (Answers dropped = AnswerDropped(); !dropped.empty()) {
      Give(std::move(dropped), lock);
    } else if (!finished_.empty()) {
      Pass pass = std::move(finished_.front());
      finished_.pop_front();
      serving_changed_.notify_one();  // it may wait for room
      Give(AnswerPass(std::move(pass)), lock);
    } else if (HasToPrepare()) {
      queue_.Prepare(Clock::now());
    } else if (serving_ended_) {
      break;
    } else {
      WaitFor(lock, answering_changed_, queue_.FirstDeadline());
    }
  }
  Give(RefuseWaiting(), lock);
}

// Outside the lock: a `done` may call Submit.
void Scheduler::Give(Answers answers, std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  for (auto& [done, answer] : answers) {
    done(std::move(answer));
  }
  answers.clear();  // what the closures hold goes outside the lock as well
  lock.lock();
}

Scheduler::Answers Scheduler::AnswerDropped() {
  Answers answers;
  for (const DroppedWork& dropped : queue_.TakeDropped()) {
    (dropped.reason == DropReason::kCancelled ? metrics_.cancelled : metrics_.expired).Increment();
    answers.emplace_back(Close(dropped.id), StatusOf(dropped.reason));
  }
  return answers;
}

Scheduler::Answers Scheduler::AnswerPass(Pass pass) {
  Answers answers;
  for (size_t i = 0; i < pass.works.size(); ++i) {
    const RunningWork& running = pass.works[i];
    absl::StatusOr<protocol::WorkResult>& answer = pass.answers[i];
    const auto found = requests_.find(running.id);
    if (found == requests_.end()) {
      continue;  // another piece of it failed, or its client left
    }
    if (answer.ok()) {
      answer->usage.queue_seconds = running.queue_seconds;
      answer->usage.compute_seconds = pass.seconds;
    }
    WorkAssembly& assembly = found->second->assembly;
    if (running.piece.is_ahead) {  // answers nothing: what is not held now, the answer computes
      if (answer.ok()) {
        assembly.AddAhead(answer->usage);
      }
      continue;
    }
    if (!answer.ok()) {
      base::log::warn(
          "work {} failed: {}", running.piece.work.request_id, base::MessageOf(answer.status()));
      metrics_.failed.Increment();
      answers.emplace_back(Close(running.id), answer.status());
      continue;
    }
    assembly.Add(running.piece.first_sequence, *std::move(answer));
    if (assembly.is_whole()) {
      protocol::WorkResult whole = assembly.Take();
      metrics_.answered.Increment();
      metrics_.queue_seconds.Observe(whole.usage.queue_seconds);
      answers.emplace_back(Close(running.id), std::move(whole));
    }
  }
  return answers;
}

// What still waits when the process stops.
Scheduler::Answers Scheduler::RefuseWaiting() {
  Answers answers;
  for (const uint64_t id : queue_.RemoveAll()) {
    metrics_.unavailable.Increment();
    answers.emplace_back(Close(id), ShuttingDown());
  }
  return answers;
}

// Forgets a request of which nothing waits any more; its `done` is to be called.
Scheduler::Done Scheduler::Close(uint64_t id) {
  const auto found = requests_.find(id);
  ZP_CHECK(found != requests_.end()) << id;
  Done done = std::move(found->second->done);
  queue_tokens_ -= found->second->waiting_tokens;
  requests_.erase(found);
  PublishQueueSize();
  return done;
}

void Scheduler::PublishQueueSize() {
  metrics_.queue_tokens.Set(static_cast<double>(queue_tokens_));
  metrics_.queue_requests.Set(static_cast<double>(queue_.work_count()));
  metrics_.outstanding_flops.Set(OutstandingFlops());
}

}  // namespace zp::scheduler
