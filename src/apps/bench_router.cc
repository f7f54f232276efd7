#include "apps/bench_router.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "boost/json.hpp"
#include "fmt/format.h"
#include "planner/trace.h"
#include "routing/request_router.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

using Clock = std::chrono::steady_clock;

struct RouterOptions {
  int32_t ranks = 64;
  int64_t blocks = 1'000'000;
  int32_t prompt_blocks = 128;
  std::vector<int64_t> in_flight = {1'000, 10'000};
  int32_t decisions = 20'000;
  std::string policy = "full";
  bool json = false;
};

class RouterBench {
 public:
  explicit RouterBench(const RouterOptions& options)
      : options_(options), spec_(*spec::FindModelShape("qwen3-30b-a3b")) {}

  absl::Status Run() {
    for (const int64_t in_flight : options_.in_flight) {
      ZP_RETURN_IF_ERROR(RunCase(in_flight));
    }
    return absl::OkStatus();
  }

 private:
  // A prompt of which another rank holds a part: half of its blocks lead some indexed prefix.
  protocol::Work WorkOf(uint64_t number) const {
    const int32_t shared = options_.prompt_blocks / 2 * protocol::kBlockTokens;
    const uint64_t family = number % FamilyCount();
    const planner::TraceRequest request = {
        .prompts = {{.runs = {{family, shared}, {1'000'000'000 + number, shared + 8}}}}};
    return planner::MakeWork(request, "router", 1 << 30, 1 << 20);
  }
  uint64_t FamilyCount() const {
    return std::max<int64_t>(1, options_.blocks / options_.prompt_blocks);
  }

  absl::Status RunCase(int64_t in_flight) {
    ZP_ASSIGN_OR_RETURN(std::unique_ptr<routing::RoutingPolicy> policy,
                        routing::MakePolicy(options_.policy));
    routing::RequestRouter router(
        spec_, {.admission = {.max_backlog_seconds = 1e12}}, std::move(policy));
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      ZP_RETURN_IF_ERROR(router.AddRank(rank));
    }
    const protocol::BlockHasher hasher(0);
    for (uint64_t family = 0; router.indexed_block_count() < options_.blocks; ++family) {
      protocol::RankReport report = {.flops_per_s = 4e14, .saturation_flops = 6e13};
      report.cache.stored = hasher.Chain("", WorkOf(family).sequences[0].tokens);
      router.OnReport(static_cast<int32_t>(family % options_.ranks), report, Clock::now());
    }
    std::deque<routing::Placement> placements;
    std::vector<double> hash_us, decide_us;
    for (int64_t number = 0; number < in_flight + options_.decisions; ++number) {
      const protocol::Work work = WorkOf(7'919 * static_cast<uint64_t>(number));
      const Clock::time_point begin = Clock::now();
      const routing::WorkProfile profile = router.Profile(work);
      const Clock::time_point profiled = Clock::now();
      ZP_ASSIGN_OR_RETURN(placements.emplace_back(), router.Decide(profile, profiled));
      const Clock::time_point decided = Clock::now();
      if (number >= in_flight) {
        placements.pop_front();
        hash_us.push_back(1e6 * std::chrono::duration<double>(profiled - begin).count());
        decide_us.push_back(1e6 * std::chrono::duration<double>(decided - profiled).count());
      }
    }
    Print(in_flight, router.indexed_block_count(), hash_us, decide_us);
    return absl::OkStatus();
  }

  void Print(int64_t in_flight,
             int64_t blocks,
             const std::vector<double>& hash_us,
             const std::vector<double>& decide_us) const {
    const json::object line = {{"bench", "router"},
                               {"policy", options_.policy},
                               {"ranks", options_.ranks},
                               {"indexed_blocks", blocks},
                               {"prompt_blocks", options_.prompt_blocks},
                               {"requests_in_flight", in_flight},
                               {"decide_us_p50", Quantile(decide_us, 0.5)},
                               {"decide_us_p99", Quantile(decide_us, 0.99)},
                               {"hash_us_p50", Quantile(hash_us, 0.5)},
                               {"hash_us_p99", Quantile(hash_us, 0.99)}};
    if (options_.json) {
      fmt::print("{}\n", json::serialize(line));
      return;
    }
    for (const auto& [key, value] : line) {
      fmt::print("  {:<20} {}\n", std::string(key), json::serialize(value));
    }
  }

  const RouterOptions options_;
  const spec::ModelSpec spec_;
};

}  // namespace

void AddBenchRouterCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "router", "Microseconds that a choice of a rank takes, and the hashing before it");
  const auto options = std::make_shared<RouterOptions>();
  command->add_option("--ranks", options->ranks, "To choose from")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--blocks", options->blocks, "Blocks of 16 tokens that are indexed")
      ->check(CLI::Range(int64_t{1}, int64_t{100'000'000}))
      ->capture_default_str();
  command->add_option("--prompt-blocks", options->prompt_blocks, "Of each request")
      ->check(CLI::Range(2, 65'536))
      ->capture_default_str();
  command->add_option("--in-flight", options->in_flight, "Requests in flight, one case each")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--decisions", options->decisions, "That are timed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--policy", options->policy, "As in `bench routing`")
      ->check(CLI::IsMember(routing::PolicyNames()))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line per case");
  command->callback([options] { ExitOnError(RouterBench(*options).Run()); });
}

}  // namespace zp::apps
