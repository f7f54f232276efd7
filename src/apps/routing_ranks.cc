#include "apps/routing_ranks.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "checkpoint/synthetic.h"
#include "protocol/work_cost.h"
#include "routing/work_router.h"

namespace zp::apps {
namespace {

using Clock = std::chrono::steady_clock;

// Brings the requests of a trace to a sink, at its pace, and hears the answers.
class Client {
 public:
  Client(const planner::Trace& trace,
         const planner::ReplayPace& pace,
         const spec::ModelSpec& spec,
         int32_t max_prompt_tokens)
      : trace_(trace),
        pace_(pace),
        vocab_count_(static_cast<int32_t>(spec.vocab_count)),
        max_prompt_tokens_(max_prompt_tokens),
        distinct_(spec) {
    result_.latency_s.resize(trace.requests.size());
  }

  absl::StatusOr<planner::ReplayResult> Run(protocol::WorkSink& sink) {
    begin_ = Clock::now();
    for (size_t request = 0; request < trace_.requests.size(); ++request) {
      protocol::Work work = planner::MakeWork(
          trace_.requests[request], std::to_string(request), vocab_count_, max_prompt_tokens_);
      result_.asked_tokens += work.token_count();
      result_.distinct_tokens += distinct_.Add(work).tokens;
      AwaitTurn(request);
      Send(sink, request, std::move(work));
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return in_flight_ == 0; });
    ZP_RETURN_IF_ERROR(failure_);
    return std::move(result_);
  }

 private:
  void AwaitTurn(size_t request) {
    if (pace_.requests_in_flight == 0) {
      std::this_thread::sleep_until(
          begin_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                       trace_.requests[request].arrival_s * pace_.time_scale)));
      return;
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return in_flight_ < pace_.requests_in_flight; });
  }

  void Send(protocol::WorkSink& sink, size_t request, protocol::Work work) {
    {
      const std::lock_guard lock(mutex_);
      ++in_flight_;
    }
    const Clock::time_point sent = Clock::now();
    const absl::Status status =
        sink.Submit(std::move(work), {}, [this, request, sent](const auto& answer) {
          Take(request, sent, answer);
        });
    if (!status.ok()) {
      Take(request, sent, status);
    }
  }

  void Take(size_t request,
            Clock::time_point sent,
            const absl::StatusOr<protocol::WorkResult>& answer) {
    const std::lock_guard lock(mutex_);
    const Clock::time_point now = Clock::now();
    --in_flight_;
    failure_.Update(answer.status());
    if (answer.ok()) {
      result_.latency_s[request] = std::chrono::duration<double>(now - sent).count();
      result_.computed_tokens += answer->usage.computed_tokens;
      result_.cached_tokens += answer->usage.cached_tokens;
      result_.computed_flops += answer->usage.flops;
      result_.seconds = std::chrono::duration<double>(now - begin_).count();
    }
    changed_.notify_all();
  }

  const planner::Trace& trace_;
  const planner::ReplayPace pace_;
  const int32_t vocab_count_;
  const int32_t max_prompt_tokens_;
  protocol::PassCost distinct_;
  Clock::time_point begin_;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  int32_t in_flight_ = 0;
  absl::Status failure_;
  planner::ReplayResult result_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RoutingRanks>> RoutingRanks::Load(
    const RoutingRanksOptions& options) {
  std::unique_ptr<RoutingRanks> ranks(new RoutingRanks(options));
  ZP_ASSIGN_OR_RETURN(
      ranks->host_model_,
      engine::HostModel::Load(*checkpoint::CreateSynthetic(options.spec, /*seed=*/1),
                              {.activation_dtype = options.dtype, .rank_count = options.ranks}));
  return ranks;
}

absl::StatusOr<planner::ReplayResult> RoutingRanks::Replay(
    const planner::Trace& trace,
    const planner::ReplayPace& pace,
    std::unique_ptr<routing::RoutingPolicy> policy) {
  constexpr uint64_t kBlockKey = 0;
  constexpr double kNoLimit = 1e9;  // what is compared is the order, not the refusals
  const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  const int threads = std::max(1, cores / options_.ranks);
  std::vector<std::unique_ptr<engine::Engine>> engines;
  for (int32_t rank = 0; rank < options_.ranks; ++rank) {
    std::vector<int> cpus;
    cpus.reserve(threads);
    for (int thread = 0; thread < threads; ++thread) {
      cpus.push_back((rank * threads + thread) % cores);
    }
    ZP_ASSIGN_OR_RETURN(engines.emplace_back(),
                        engine::Engine::Create(host_model_,
                                               {.rank = rank,
                                                .thread_count = threads,
                                                .cpus = cpus,
                                                .prefix_cache_bytes = options_.cache_bytes,
                                                .block_key = kBlockKey}));
  }
  kernels_name_ = engines.front()->kernels_name();
  routing::WorkRouter router(
      host_model_->spec(),
      {.block_key = kBlockKey, .admission = {.max_backlog_seconds = kNoLimit}},
      std::move(policy));
  std::vector<std::unique_ptr<scheduler::Scheduler>> schedulers;  // go before the router
  for (int32_t rank = 0; rank < options_.ranks; ++rank) {
    schedulers.push_back(std::make_unique<scheduler::Scheduler>(
        *engines[rank],
        scheduler::SchedulerOptions{
            .rank = rank,
            .max_batch_tokens = options_.max_batch_tokens,
            .max_sequence_tokens = options_.max_prompt_tokens,
            .max_queue_tokens = int64_t{1} << 50,
            .max_hold = options_.max_hold,
            .block_key = kBlockKey,
            .cache_tokens = engines[rank]->prefix_cache_tokens(),
            .on_report = [&router, rank](const protocol::RankReport& report) {
              router.OnReport(rank, report);
            }}));
    ZP_RETURN_IF_ERROR(router.AddRank(rank, *schedulers[rank]));
  }
  Client client(trace, pace, host_model_->spec(), options_.max_prompt_tokens);
  absl::StatusOr<planner::ReplayResult> result = client.Run(router);
  for (int32_t rank = 0; rank < options_.ranks; ++rank) {
    router.RemoveRank(rank);
  }
  return result;
}

}  // namespace zp::apps
