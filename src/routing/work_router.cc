#include "routing/work_router.h"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/logging.h"
#include "base/metrics.h"
#include "fmt/format.h"
#include "protocol/full_queue.h"

namespace zp::routing {
namespace {

using protocol::Work;
using protocol::WorkResult;
using protocol::WorkSink;

// What a scraper sees of the decisions.
struct RankMetrics {
  explicit RankMetrics(RankId rank)
      : outstanding_flops(base::GetGauge("zeroprefill_router_outstanding_flops",
                                         "Work at a rank that is not answered, in true FLOPs",
                                         {{"rank", std::to_string(rank)}})),
        outstanding_requests(base::GetGauge("zeroprefill_router_outstanding_requests",
                                            "Works at a rank that are not answered",
                                            {{"rank", std::to_string(rank)}})) {
    for (const Reason reason : {Reason::kOwner, Reason::kFill, Reason::kLeast, Reason::kRetry}) {
      decisions.push_back(&base::GetCounter(
          "zeroprefill_router_decisions_total",
          "Works brought to a rank, by why it was chosen",
          {{"rank", std::to_string(rank)}, {"reason", std::string(NameOf(reason))}}));
    }
  }

  void Publish(const RequestRouter& router, RankId rank) {
    const std::lock_guard lock(mutex);  // or an old number could be shown after a new one
    const Outstanding outstanding = router.outstanding(rank);
    outstanding_flops.Set(outstanding.flops);
    outstanding_requests.Set(static_cast<double>(outstanding.requests));
  }

  std::mutex mutex;
  base::Gauge& outstanding_flops;
  base::Gauge& outstanding_requests;
  std::vector<base::Counter*> decisions;  // by reason
};

struct RouterMetrics {
  base::Counter& refused = base::GetCounter("zeroprefill_router_refused_total",
                                            "Works for which there was no time or no room");
  base::Counter& resent =
      base::GetCounter("zeroprefill_router_resent_total",
                       "Works sent elsewhere since their rank was lost or refused them");
  base::Counter& held_tokens = base::GetCounter(
      "zeroprefill_router_held_tokens_total", "Tokens that the chosen ranks were thought to hold");
  base::Counter& cached_tokens =
      base::GetCounter("zeroprefill_router_cached_tokens_total", "Tokens that they did hold");
};

bool IsRefusal(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
}

}  // namespace

class WorkRouter::State : public std::enable_shared_from_this<State> {
 public:
  State(const spec::ModelSpec& spec,
        const RouterOptions& options,
        std::unique_ptr<RoutingPolicy> policy,
        Clock clock)
      : clock_(std::move(clock)), router_(spec, options, std::move(policy)) {}

  absl::Status AddRank(RankId rank, WorkSink& sink);
  void RemoveRank(RankId rank);
  absl::Status Submit(Work work, std::stop_token cancel, WorkSink::Done done);
  absl::Status CheckRoom(std::optional<std::chrono::steady_clock::time_point> deadline);
  void Close();
  void OnReport(RankId rank, const protocol::RankReport& report) {
    router_.OnReport(rank, report, clock_());
  }
  RequestRouter& router() { return router_; }

 private:
  // A work from Submit to its answer.
  struct Flight {
    std::shared_ptr<const Work> work;
    std::stop_token cancel;
    WorkSink::Done done;
    WorkProfile profile;
    std::vector<RankId> excluded;  // refused it or were lost
    bool was_lost = false;         // sent elsewhere since a rank was lost; not again
    bool was_refused = false;      // the same for a rank that refused it
  };
  // A flight that is at a rank; named by its number, which another try has not.
  struct Try {
    std::shared_ptr<Flight> flight;
    Placement placement;
  };
  struct Seat {
    WorkSink* sink = nullptr;
    std::shared_ptr<RankMetrics> metrics;
    int32_t submit_count = 0;  // calls of its Submit that run
  };

  absl::Status CheckQueues(std::optional<std::chrono::steady_clock::time_point> deadline);
  absl::Status Send(const std::shared_ptr<Flight>& flight, bool is_admitted);
  absl::Status SendTo(const std::shared_ptr<Flight>& flight, Placement placement);
  void OnAnswer(uint64_t number, absl::StatusOr<WorkResult> answer);
  void Settle(Try finished, absl::StatusOr<WorkResult> answer);
  static bool MayGoElsewhere(Flight& flight, const absl::Status& why);
  absl::Status SendElsewhere(const std::shared_ptr<Flight>& flight, const absl::Status& why);
  absl::Status CheckStillWanted(const Flight& flight) const;

  const Clock clock_;
  RequestRouter router_;
  RouterMetrics metrics_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // All below are guarded by mutex_.
  absl::flat_hash_map<RankId, Seat> seats_;
  absl::flat_hash_map<uint64_t, Try> tries_;
  uint64_t try_count_ = 0;
  bool is_closed_ = false;
};

absl::Status WorkRouter::State::AddRank(RankId rank, WorkSink& sink) {
  auto metrics = std::make_shared<RankMetrics>(rank);
  // At once here and in router_: a RemoveRank in between would leave a rank without a sink there.
  const std::lock_guard lock(mutex_);
  if (seats_.contains(rank)) {  // perhaps on its way out
    return absl::AlreadyExistsError(fmt::format("rank {} is there already", rank));
  }
  ZP_RETURN_IF_ERROR(router_.AddRank(rank));
  seats_[rank] = {.sink = &sink, .metrics = std::move(metrics)};
  return absl::OkStatus();
}

void WorkRouter::State::RemoveRank(RankId rank) {
  std::vector<Try> lost;
  std::shared_ptr<RankMetrics> metrics;
  {
    std::unique_lock lock(mutex_);
    const auto found = seats_.find(rank);
    if (found == seats_.end() || found->second.sink == nullptr) {
      return;  // not there, or somebody else removes it
    }
    router_.RemoveRank(rank);
    found->second.sink = nullptr;
    metrics = found->second.metrics;
    changed_.wait(lock, [&] { return seats_.at(rank).submit_count == 0; });
    seats_.erase(rank);
    for (auto next = tries_.begin(); next != tries_.end();) {
      const auto here = next++;
      if (here->second.placement.rank() == rank) {
        lost.push_back(std::move(here->second));
        tries_.erase(here);
      }
    }
  }
  if (!lost.empty()) {
    base::log::warn("routing: {} works of rank {} go to other ranks", lost.size(), rank);
  }
  for (Try& one : lost) {
    Settle(std::move(one), absl::UnavailableError(fmt::format("rank {} was lost", rank)));
  }
  metrics->Publish(router_, rank);  // nothing is at a rank that is gone
}

absl::Status WorkRouter::State::Submit(Work work, std::stop_token cancel, WorkSink::Done done) {
  if (work.sequences.empty()) {
    return absl::InvalidArgumentError("the work has no sequences");
  }
  for (size_t i = 0; i < work.sequences.size(); ++i) {
    if (work.sequences[i].tokens.empty()) {
      return absl::InvalidArgumentError(fmt::format("sequence {} has no tokens", i));
    }
  }
  auto flight = std::make_shared<Flight>();
  flight->profile = router_.Profile(work);
  flight->work = std::make_shared<const Work>(std::move(work));
  flight->cancel = std::move(cancel);
  flight->done = std::move(done);
  return Send(flight, /*is_admitted=*/false);
}

absl::Status WorkRouter::State::CheckRoom(
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  absl::Status status = router_.CheckRoom(deadline, clock_());
  if (status.ok()) {
    status = CheckQueues(deadline);
  }
  if (absl::IsResourceExhausted(status)) {
    metrics_.refused.Increment();
  }
  return status;
}

// OK where some rank has room, or where that cannot be said without waiting; else what the rank
// says that will have drained first.
absl::Status WorkRouter::State::CheckQueues(
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  absl::Status soonest;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) {
    return absl::OkStatus();
  }
  for (const auto& [rank, seat] : seats_) {
    const absl::Status status =
        seat.sink == nullptr ? absl::OkStatus() : seat.sink->CheckRoom(deadline);
    if (!absl::IsResourceExhausted(status)) {
      return absl::OkStatus();
    }
    if (soonest.ok() || protocol::RetrySecondsOf(status) < protocol::RetrySecondsOf(soonest)) {
      soonest = status;
    }
  }
  return soonest;
}

// To the rank that is chosen, or to a second one where that refuses.
absl::Status WorkRouter::State::Send(const std::shared_ptr<Flight>& flight, bool is_admitted) {
  absl::Status refusal;
  while (true) {
    absl::StatusOr<Placement> placement =
        router_.Decide(flight->profile,
                       clock_(),
                       {.is_admitted = is_admitted || !refusal.ok(),
                        .excluded = flight->excluded,
                        .is_resent = flight->was_lost});
    if (!placement.ok()) {
      if (absl::IsResourceExhausted(placement.status())) {
        metrics_.refused.Increment();
      }
      return refusal.ok() ? placement.status() : refusal;  // what the rank said tells more
    }
    const RankId rank = placement->rank();
    absl::Status status = SendTo(flight, *std::move(placement));
    if (!IsRefusal(status)) {
      return status;
    }
    // A full rank says when to come again, one that is gone does not.
    if (!absl::IsResourceExhausted(refusal)) {
      refusal = status;
    }
    if (std::exchange(flight->was_refused, true)) {
      return refusal;
    }
    flight->excluded.push_back(rank);
  }
}

// OK: the answer comes through OnAnswer, or the flight is in other hands already.
absl::Status WorkRouter::State::SendTo(const std::shared_ptr<Flight>& flight, Placement placement) {
  const RankId rank = placement.rank();
  uint64_t number = 0;
  WorkSink* sink = nullptr;
  std::shared_ptr<RankMetrics> metrics;
  {
    const std::lock_guard lock(mutex_);
    const auto seat = seats_.find(rank);
    if (is_closed_ || seat == seats_.end() || seat->second.sink == nullptr) {
      return absl::UnavailableError(fmt::format("rank {} has gone", rank));
    }
    sink = seat->second.sink;
    metrics = seat->second.metrics;
    ++seat->second.submit_count;
    metrics->decisions[static_cast<size_t>(placement.reason())]->Increment();
    metrics_.held_tokens.Increment(static_cast<double>(placement.held_tokens()));
    number = ++try_count_;
    tries_.emplace(number, Try{.flight = flight, .placement = std::move(placement)});
  }
  metrics->Publish(router_, rank);
  Work work = *flight->work;
  work.is_resent = flight->was_lost;
  absl::Status status =
      sink->Submit(std::move(work),
                   flight->cancel,
                   [state = shared_from_this(), number](absl::StatusOr<WorkResult> answer) {
                     state->OnAnswer(number, std::move(answer));
                   });
  Try refused;  // its placement goes without the lock
  {
    const std::lock_guard lock(mutex_);
    --seats_.at(rank).submit_count;
    changed_.notify_all();
    const auto here = tries_.find(number);
    if (status.ok() || here == tries_.end()) {
      return absl::OkStatus();
    }
    refused = std::move(here->second);
    tries_.erase(here);
  }
  refused.placement.Release();
  metrics->Publish(router_, rank);
  return status;
}

void WorkRouter::State::OnAnswer(uint64_t number, absl::StatusOr<WorkResult> answer) {
  Try finished;
  {
    const std::lock_guard lock(mutex_);
    const auto found = tries_.find(number);
    if (found == tries_.end()) {
      return;  // late: it was sent elsewhere
    }
    finished = std::move(found->second);
    tries_.erase(found);
  }
  Settle(std::move(finished), std::move(answer));
}

// Gives the answer on, or sends the work elsewhere where its rank was lost or, being on another
// host, refuses it only now. The reservation goes before the answer: who has all answers finds the
// ledger at zero.
void WorkRouter::State::Settle(Try finished, absl::StatusOr<WorkResult> answer) {
  const RankId rank = finished.placement.rank();
  finished.placement.Release();
  std::shared_ptr<RankMetrics> metrics;
  bool is_closed = false;
  {
    const std::lock_guard lock(mutex_);
    is_closed = is_closed_;
    if (const auto seat = seats_.find(rank); seat != seats_.end()) {
      metrics = seat->second.metrics;
    }
  }
  if (metrics != nullptr) {
    metrics->Publish(router_, rank);
  }
  Flight& flight = *finished.flight;
  if (!is_closed && MayGoElsewhere(flight, answer.status())) {
    flight.excluded.push_back(rank);
    const absl::Status status = SendElsewhere(finished.flight, answer.status());
    if (status.ok()) {
      return;
    }
    answer = status;
  }
  if (answer.ok()) {
    metrics_.cached_tokens.Increment(static_cast<double>(answer->usage.cached_tokens));
  }
  flight.done(std::move(answer));
}

// Once since a rank was lost and once since one refused; it remembers.
bool WorkRouter::State::MayGoElsewhere(Flight& flight, const absl::Status& why) {
  if (absl::IsUnavailable(why) && !flight.was_lost) {
    flight.was_lost = true;
    // What was full then takes it now: it is accepted.
    flight.was_refused = false;
    flight.excluded.clear();
    return true;
  }
  return absl::IsResourceExhausted(why) && !std::exchange(flight.was_refused, true);
}

// Not OK: what the client is to be told.
absl::Status WorkRouter::State::SendElsewhere(const std::shared_ptr<Flight>& flight,
                                              const absl::Status& why) {
  ZP_RETURN_IF_ERROR(CheckStillWanted(*flight));
  // Not a warning: there may be ten thousand of them.
  base::log::debug(
      "work {} goes to another rank: {}", flight->work->request_id, base::MessageOf(why));
  metrics_.resent.Increment();
  const absl::Status status = Send(flight, /*is_admitted=*/true);
  return absl::IsUnavailable(status) ? why : status;  // nobody else is there
}

absl::Status WorkRouter::State::CheckStillWanted(const Flight& flight) const {
  if (flight.cancel.stop_requested()) {
    return absl::CancelledError("the client left before the work started");
  }
  if (flight.work->deadline.has_value() && *flight.work->deadline < clock_()) {
    return absl::DeadlineExceededError("the deadline passed before the work started");
  }
  return absl::OkStatus();
}

void WorkRouter::State::Close() {
  absl::flat_hash_map<uint64_t, Try> open;
  {
    std::unique_lock lock(mutex_);
    is_closed_ = true;
    changed_.wait(lock, [this] {
      return std::ranges::all_of(seats_,
                                 [](const auto& seat) { return seat.second.submit_count == 0; });
    });
    open.swap(tries_);
  }
  for (auto& [number, one] : open) {
    Settle(std::move(one), absl::UnavailableError("the server is shutting down"));
  }
}

WorkRouter::WorkRouter(const spec::ModelSpec& spec,
                       const RouterOptions& options,
                       std::unique_ptr<RoutingPolicy> policy,
                       Clock clock)
    : state_(std::make_shared<State>(spec, options, std::move(policy), std::move(clock))) {}

WorkRouter::~WorkRouter() { Close(); }

absl::Status WorkRouter::AddRank(RankId rank, WorkSink& sink) {
  return state_->AddRank(rank, sink);
}

void WorkRouter::RemoveRank(RankId rank) { state_->RemoveRank(rank); }

void WorkRouter::Close() { state_->Close(); }

void WorkRouter::OnReport(RankId rank, const protocol::RankReport& report) {
  state_->OnReport(rank, report);
}

absl::Status WorkRouter::Submit(Work work, std::stop_token cancel, Done done) {
  return state_->Submit(std::move(work), std::move(cancel), std::move(done));
}

absl::Status WorkRouter::CheckRoom(std::optional<std::chrono::steady_clock::time_point> deadline) {
  return state_->CheckRoom(deadline);
}

const RequestRouter& WorkRouter::decisions() const { return state_->router(); }

}  // namespace zp::routing
