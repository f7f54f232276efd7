#include "planner/virtual_cluster.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <queue>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "protocol/work_cost.h"

namespace zp::planner {
namespace {

using scheduler::TimePoint;

// Contents are told apart by their tokens: a large vocabulary, whatever the model's is.
constexpr int32_t kVocabulary = 1 << 30;

struct Event {
  TimePoint time;
  uint64_t number = 0;  // of equal times the first made comes first
  enum class Kind { kArrival, kStart, kFinish } kind = Kind::kArrival;
  int32_t rank = 0;

  bool operator>(const Event& other) const {
    return std::tie(time, number) > std::tie(other.time, other.number);
  }
};

class Replay {
 public:
  Replay(const Trace& trace,
         const ReplayPace& pace,
         const spec::ModelSpec& spec,
         const MachineModel& machine,
         const VirtualClusterOptions& options,
         std::unique_ptr<routing::RoutingPolicy> policy)
      : trace_(trace),
        pace_(pace),
        spec_(spec),
        options_(options),
        model_(spec, machine, options.ranks),
        router_(spec, options.router, std::move(policy)) {}

  absl::StatusOr<ReplayResult> Run() {
    ZP_RETURN_IF_ERROR(StartRanks());
    result_.latency_s.resize(trace_.requests.size());
    placements_.resize(trace_.requests.size());
    arrivals_.resize(trace_.requests.size());
    busy_seconds_.resize(options_.ranks);
    LetIn(begin_);
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      ZP_RETURN_IF_ERROR(Handle(event));
    }
    ZP_CHECK(in_flight_ == 0) << in_flight_ << " requests were lost";
    result_.least_busy_seconds = std::ranges::min(busy_seconds_);
    result_.least_seconds = model_.LeastSeconds(options_.ranks,
                                                result_.distinct_flops,
                                                std::ssize(trace_.requests),
                                                pace_.requests_in_flight);
    return std::move(result_);
  }

 private:
  absl::Status StartRanks() {
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      ZP_ASSIGN_OR_RETURN(ranks_.emplace_back(), VirtualRank::Create(spec_, model_, options_.rank));
      ZP_RETURN_IF_ERROR(router_.AddRank(rank));
      // What a rank measures before it takes work.
      router_.OnReport(
          rank,
          {.flops_per_s = model_.flops_per_s(), .saturation_flops = model_.saturation_flops()},
          begin_);
    }
    return absl::OkStatus();
  }

  // The requests that may come in now, by the pace.
  void LetIn(TimePoint now) {
    if (pace_.requests_in_flight > 0) {
      for (; next_request_ + pending_arrivals_ < trace_.requests.size() &&
             in_flight_ + static_cast<int32_t>(pending_arrivals_) < pace_.requests_in_flight;
           ++pending_arrivals_) {
        Add(now + ToDuration(ThinkSeconds()), Event::Kind::kArrival, 0);
      }
    } else if (next_request_ < trace_.requests.size()) {
      ++pending_arrivals_;
      const double arrival_s = trace_.requests[next_request_].arrival_s * pace_.time_scale;
      Add(begin_ + ToDuration(arrival_s), Event::Kind::kArrival, 0);
    }
  }

  double ThinkSeconds() {
    const double uniform = static_cast<double>(thinking_() >> 11) * 0x1p-53;
    return -std::log1p(-uniform) * pace_.think_s;
  }

  absl::Status Handle(const Event& event) {
    switch (event.kind) {
      case Event::Kind::kArrival:
        --pending_arrivals_;
        ZP_RETURN_IF_ERROR(Arrive(event.time));
        if (pace_.requests_in_flight == 0) {
          LetIn(event.time);
        }
        break;
      case Event::Kind::kStart:
        StartPass(event.rank, event.time);
        break;
      case Event::Kind::kFinish:
        FinishPass(event.rank, event.time);
        break;
    }
    return absl::OkStatus();
  }

  absl::Status Arrive(TimePoint now) {
    const size_t request = next_request_++;
    protocol::Work work = MakeWork(
        trace_.requests[request], std::to_string(request), kVocabulary, options_.max_prompt_tokens);
    result_.asked_tokens += work.token_count();
    const protocol::WorkCost distinct = distinct_.Add(work);
    result_.distinct_tokens += distinct.tokens;
    result_.distinct_flops += distinct.flops;
    ZP_ASSIGN_OR_RETURN(placements_[request],
                        router_.Decide(router_.Profile(work), now, {.is_admitted = true}));
    const int32_t rank = placements_[request].rank();
    arrivals_[request] = now;
    ++in_flight_;
    if (next_request_ == trace_.requests.size()) {
      result_.loaded_seconds = std::chrono::duration<double>(now - begin_).count();
      result_.loaded_tokens = answered_tokens_;
    }
    ranks_[rank]->Add(request, std::move(work), now);
    StartPass(rank, now);
    return absl::OkStatus();
  }

  // Now, or when the queue has waited long enough for company.
  void StartPass(int32_t rank, TimePoint now) {
    VirtualRank& here = *ranks_[rank];
    const auto start = here.is_running() ? std::nullopt : here.StartTime();
    if (!start.has_value()) {
      return;
    }
    if (*start > now) {
      Add(*start, Event::Kind::kStart, rank);
      return;
    }
    if (const auto seconds = here.StartPass(now); seconds.has_value()) {
      Add(now + ToDuration(*seconds), Event::Kind::kFinish, rank);
    }
  }

  void FinishPass(int32_t rank, TimePoint now) {
    const VirtualRank::FinishedPass pass = ranks_[rank]->FinishPass();
    result_.computed_tokens += pass.cost.tokens;
    result_.computed_flops += pass.cost.flops;
    result_.cached_tokens += pass.cached_tokens;
    result_.busy_seconds += pass.seconds;
    busy_seconds_[rank] += pass.seconds;
    result_.exposed_wait_seconds += pass.exposed_wait_seconds;
    result_.seconds = std::chrono::duration<double>(now - begin_).count();
    ++result_.pass_count;
    router_.OnReport(rank, pass.report, now);
    for (const uint64_t request : pass.answered) {
      placements_[request].Release();
      answered_tokens_ += trace_.requests[request].token_count();
      result_.latency_s[request] = std::chrono::duration<double>(now - arrivals_[request]).count();
      --in_flight_;
    }
    if (pace_.requests_in_flight > 0) {
      LetIn(now);
    }
    StartPass(rank, now);
  }

  void Add(TimePoint time, Event::Kind kind, int32_t rank) {
    events_.push({.time = time, .number = event_count_++, .kind = kind, .rank = rank});
  }

  static TimePoint::duration ToDuration(double seconds) {
    return std::chrono::duration_cast<TimePoint::duration>(std::chrono::duration<double>(seconds));
  }

  const Trace& trace_;
  const ReplayPace pace_;
  const spec::ModelSpec& spec_;
  const VirtualClusterOptions options_;
  const RankModel model_;
  routing::RequestRouter router_;  // outlives the placements
  std::vector<std::unique_ptr<VirtualRank>> ranks_;
  std::vector<routing::Placement> placements_;  // [request]
  std::vector<TimePoint> arrivals_;             // [request]
  std::vector<double> busy_seconds_;            // [rank]
  protocol::PassCost distinct_{spec_};
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t event_count_ = 0;
  const TimePoint begin_ = TimePoint() + std::chrono::hours(1);
  size_t next_request_ = 0;
  size_t pending_arrivals_ = 0;
  int32_t in_flight_ = 0;
  int64_t answered_tokens_ = 0;
  std::mt19937_64 thinking_;
  ReplayResult result_;
};

}  // namespace

absl::StatusOr<ReplayResult> ReplayVirtually(const Trace& trace,
                                             const ReplayPace& pace,
                                             const spec::ModelSpec& spec,
                                             const MachineModel& machine,
                                             const VirtualClusterOptions& options,
                                             std::unique_ptr<routing::RoutingPolicy> policy) {
  return Replay(trace, pace, spec, machine, options, std::move(policy)).Run();
}

}  // namespace zp::planner
