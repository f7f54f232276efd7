// Brings works to ranks and keeps each until it is answered: RequestRouter with sinks behind it,
// as one sink.
//
// A work whose rank is lost goes to another, once: works are idempotent. So does one that its rank
// refuses, at once or, as ranks of other hosts do, in its answer. Whatever happens, `done`
// is called once and the reservation is given back once; an answer that comes late, after the work
// was sent elsewhere, is dropped.
//
// Thread safety: every method from any thread. Works are sent elsewhere on the thread that brings
// the news: a sink's, or the caller of RemoveRank. No lock is held while a sink or a `done` is
// called, but for a sink's CheckRoom, which calls nobody.
// Ownership: a sink must live until RemoveRank has returned, or the router is destroyed; what it
// still calls later does no harm.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>

#include "base/status.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "routing/request_router.h"

namespace zp::routing {

using Clock = std::function<std::chrono::steady_clock::time_point()>;

class WorkRouter : public protocol::WorkSink {
 public:
  WorkRouter(const spec::ModelSpec& spec,
             const RouterOptions& options,
             std::unique_ptr<RoutingPolicy> policy,
             Clock clock = &std::chrono::steady_clock::now);
  // Answers what is still out with Unavailable.
  ~WorkRouter() override;
  WorkRouter(const WorkRouter&) = delete;
  WorkRouter& operator=(const WorkRouter&) = delete;

  // AlreadyExists for an id that is there, ResourceExhausted beyond kMaxRanks.
  absl::Status AddRank(RankId rank, protocol::WorkSink& sink);
  // Waits for the calls of its Submit that run, then sends its works elsewhere. The sink need not
  // answer them. No effect for a rank that is not there.
  // REQUIRES: not called from within that sink's Submit.
  void RemoveRank(RankId rank);
  void OnReport(RankId rank, const protocol::RankReport& report);

  // Takes no more works and answers what is out with Unavailable, whatever the ranks still do.
  void Close();

  // See WorkSink. Refuses by admission; asks a second rank where the first refuses; Unavailable
  // where there is none. Cancel and deadline are the rank's to keep; the router looks at them only
  // before it sends a work elsewhere.
  absl::Status Submit(protocol::Work work, std::stop_token cancel, Done done) override;

  // Refuses by admission, or where the queues of all ranks are full.
  absl::Status CheckRoom(std::optional<std::chrono::steady_clock::time_point> deadline) override;

  // To look at.
  const RequestRouter& decisions() const;

 private:
  class State;
  // Late answers may come after the router is gone.
  const std::shared_ptr<State> state_;
};

}  // namespace zp::routing
