#include "apps/bench_routing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "apps/routing_ranks.h"
#include "apps/trace_files.h"
#include "base/units.h"
#include "boost/json.hpp"
#include "fmt/format.h"
#include "planner/rank_model.h"
#include "planner/trace.h"
#include "planner/virtual_cluster.h"
#include "routing/routing_policy.h"
#include "spec/model_shapes.h"
#include "text/tokenizer.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct RoutingOptions {
  int32_t ranks = 2;
  bool is_virtual = false;
  std::vector<std::string> traces = {
      "few-shot", "documents", "rerank", "conversation", "uneven", "long-tail"};
  std::vector<std::string> policies = routing::PolicyNames();
  std::string tokenizer;
  std::string shape = "qwen3-30b-a3b";
  int32_t layers = 0;  // 0: all of them, and 2 of real ranks
  std::string dtype = "bf16";
  std::string machine = "h100-nvlink";
  std::string cache;  // per rank
  int32_t requests = 0;
  int32_t in_flight_per_rank = 0;
  double think_ms = 5;
  double load = 0.8;
  int64_t max_batch_tokens = 0;
  int64_t max_hold_ms = 0;
  int rounds = 0;
  uint64_t seed = 1;
  bool json = false;
};

// A trace through one policy.
struct PolicyRuns {
  std::string policy;
  std::vector<planner::ReplayResult> saturated = {};  // [round]
  std::vector<planner::ReplayResult> steady = {};     // [round]
};

using Replay = std::function<absl::StatusOr<planner::ReplayResult>(
    const planner::Trace&, const planner::ReplayPace&, std::unique_ptr<routing::RoutingPolicy>)>;

double MedianOf(const std::vector<planner::ReplayResult>& rounds,
                const std::function<double(const planner::ReplayResult&)>& number) {
  std::vector<double> numbers;
  std::ranges::transform(rounds, std::back_inserter(numbers), number);
  return Median(numbers);
}

// Clients of one rank: so many requests as have twice T* of tokens in them that no request before
// them had, so that a pass of T* waits while one runs. No more than a quarter of the trace: each
// client is to come again.
int32_t SaturatingClients(const planner::Trace& trace,
                          const planner::RankModel& rank,
                          int32_t rank_count) {
  constexpr double kLeastClients = 64;
  constexpr double kLeastTurns = 4;
  const auto requests = static_cast<double>(trace.requests.size());
  const double new_tokens =
      (1 - planner::IdealHitRate(trace)) * static_cast<double>(trace.token_count());
  const double clients = 2 * rank.saturation_tokens() / (new_tokens / requests);
  const double most_clients = std::max(kLeastClients, requests / rank_count / kLeastTurns);
  return static_cast<int32_t>(std::ceil(std::clamp(clients, kLeastClients, most_clients)));
}

double Throughput(const PolicyRuns& runs) {
  return MedianOf(runs.saturated, [](const auto& result) { return result.tokens_per_s(); });
}

class RoutingBench {
 public:
  explicit RoutingBench(RoutingOptions options) : options_(std::move(options)) {}

  absl::Status Run() {
    ZP_RETURN_IF_ERROR(SetUp());
    for (const std::string& name : options_.traces) {
      ZP_ASSIGN_OR_RETURN(const planner::Trace trace, FindTrace(name));
      ZP_RETURN_IF_ERROR(RunTrace(trace));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status SetUp() {
    for (const std::string& policy : options_.policies) {
      ZP_RETURN_IF_ERROR(routing::MakePolicy(policy).status());
    }
    ZP_ASSIGN_OR_RETURN(spec_, spec::FindModelShape(options_.shape));
    const int32_t layers = options_.layers > 0   ? options_.layers
                           : options_.is_virtual ? spec_.layer_count
                                                 : 2;
    if (layers > spec_.layer_count) {
      return absl::InvalidArgumentError(
          fmt::format("--layers is {}; this shape has {}", layers, spec_.layer_count));
    }
    spec_ = spec::WithLayerCount(spec_, layers);
    return options_.is_virtual ? SetUpVirtual() : SetUpReal();
  }

  absl::StatusOr<int64_t> CacheBytes(int64_t otherwise) const {
    return options_.cache.empty() ? otherwise : base::ParseBytes(options_.cache);
  }

  absl::Status SetUpVirtual() {
    ZP_ASSIGN_OR_RETURN(machine_, planner::FindMachine(options_.machine));
    ZP_ASSIGN_OR_RETURN(machine_.cache_bytes, CacheBytes(machine_.cache_bytes));
    planner::VirtualClusterOptions cluster = {.ranks = options_.ranks};
    cluster.rank.cache_bytes = machine_.cache_bytes;
    cluster.rank.queue.max_batch_tokens =
        options_.max_batch_tokens > 0 ? options_.max_batch_tokens : 32'768;
    cluster.rank.queue.max_hold = std::chrono::milliseconds(options_.max_hold_ms);
    replay_ = [this, cluster](const auto& trace, const auto& pace, auto policy) {
      return planner::ReplayVirtually(trace, pace, spec_, machine_, cluster, std::move(policy));
    };
    return absl::OkStatus();
  }

  absl::Status SetUpReal() {
    RoutingRanksOptions ranks = {.ranks = options_.ranks,
                                 .spec = spec_,
                                 .max_hold = std::chrono::milliseconds(options_.max_hold_ms)};
    ZP_ASSIGN_OR_RETURN(ranks.dtype, ParseDType(options_.dtype));
    ZP_ASSIGN_OR_RETURN(ranks.cache_bytes, CacheBytes(int64_t{256} << 20));
    if (options_.max_batch_tokens > 0) {
      ranks.max_batch_tokens = options_.max_batch_tokens;
    }
    ZP_ASSIGN_OR_RETURN(real_ranks_, RoutingRanks::Load(ranks));
    replay_ = [this](const auto& trace, const auto& pace, auto policy) {
      return real_ranks_->Replay(trace, pace, std::move(policy));
    };
    return absl::OkStatus();
  }

  // SOURCE, or NAME=SOURCE+SOURCE+...
  absl::StatusOr<planner::Trace> FindTrace(const std::string& text) {
    const size_t equals = text.find('=');
    const std::string sources = equals == std::string::npos ? text : text.substr(equals + 1);
    std::vector<planner::Trace> traces;
    for (const absl::string_view source : absl::StrSplit(sources, '+')) {
      ZP_ASSIGN_OR_RETURN(traces.emplace_back(), ReadSource(std::string(source)));
    }
    if (equals != std::string::npos) {
      traces.front().name = text.substr(0, equals);
    }
    const std::string name = traces.front().name;
    return traces.size() == 1 ? std::move(traces.front())
                              : planner::MixTraces(name, std::move(traces));
  }

  // A name of GenerateTrace, or a file.
  absl::StatusOr<planner::Trace> ReadSource(const std::string& source) {
    const int32_t requests = options_.requests > 0 ? options_.requests
                             : options_.is_virtual ? 500 * options_.ranks
                                                   : 200 * options_.ranks;
    if (source.find('.') == std::string::npos) {
      return planner::GenerateTrace(source, requests, options_.seed);
    }
    if (tokenizer_ == nullptr && !options_.tokenizer.empty()) {
      ZP_ASSIGN_OR_RETURN(tokenizer_, text::Tokenizer::Load(options_.tokenizer));
    }
    ZP_ASSIGN_OR_RETURN(
        planner::Trace trace,
        ReadTrace(std::filesystem::path(source).filename().string(), source, tokenizer_.get()));
    if (options_.requests > 0 && trace.requests.size() > static_cast<size_t>(requests)) {
      trace.requests.resize(requests);
    }
    return trace;
  }

  absl::Status RunTrace(const planner::Trace& trace) {
    std::vector<PolicyRuns> all;
    for (const std::string& policy : options_.policies) {
      all.push_back({.policy = policy});
    }
    const int rounds = options_.rounds > 0 ? options_.rounds : options_.is_virtual ? 1 : 5;
    in_flight_per_rank_ = InFlightPerRank(trace);
    for (int round = 0; round < rounds; ++round) {
      for (PolicyRuns& runs : all) {
        ZP_ASSIGN_OR_RETURN(runs.saturated.emplace_back(),
                            RunOnce(trace,
                                    {.requests_in_flight = options_.ranks * in_flight_per_rank_,
                                     .think_s = 1e-3 * options_.think_ms},
                                    runs.policy));
      }
    }
    // The same arrivals for all: those that the best of them could just bear, times the load.
    double best_seconds = 1e300;
    for (const PolicyRuns& runs : all) {
      best_seconds =
          std::min(best_seconds,
                   MedianOf(runs.saturated, [](const auto& result) { return result.seconds; }));
    }
    const double trace_seconds = std::max(trace.requests.back().arrival_s, 1e-9);
    const planner::ReplayPace steady = {.time_scale = best_seconds / options_.load / trace_seconds};
    for (int round = 0; round < rounds && options_.load > 0; ++round) {
      for (PolicyRuns& runs : all) {
        ZP_ASSIGN_OR_RETURN(runs.steady.emplace_back(), RunOnce(trace, steady, runs.policy));
      }
    }
    for (const PolicyRuns& runs : all) {
      Print(trace, runs, all);
    }
    return absl::OkStatus();
  }

  int32_t InFlightPerRank(const planner::Trace& trace) const {
    constexpr int32_t kClientsOfRealRank = 16;
    if (options_.in_flight_per_rank > 0) {
      return options_.in_flight_per_rank;
    }
    return options_.is_virtual
               ? SaturatingClients(
                     trace, planner::RankModel(spec_, machine_, options_.ranks), options_.ranks)
               : kClientsOfRealRank;
  }

  absl::StatusOr<planner::ReplayResult> RunOnce(const planner::Trace& trace,
                                                const planner::ReplayPace& pace,
                                                const std::string& name) {
    ZP_ASSIGN_OR_RETURN(std::unique_ptr<routing::RoutingPolicy> policy, routing::MakePolicy(name));
    const auto begin = std::chrono::steady_clock::now();
    ZP_ASSIGN_OR_RETURN(planner::ReplayResult result, replay_(trace, pace, std::move(policy)));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    fmt::print(stderr,
               "routing: {} by {}, {}: {:.0f} tokens/s ({:.1f} s)\n",
               trace.name,
               name,
               pace.requests_in_flight > 0 ? "saturated" : "steady",
               result.tokens_per_s(),
               took.count());
    return result;
  }

  void Print(const planner::Trace& trace,
             const PolicyRuns& runs,
             const std::vector<PolicyRuns>& all) const {
    const auto milliseconds = [&](double fraction) {
      return runs.steady.empty() ? 0 : 1e3 * MedianOf(runs.steady, [&](const auto& result) {
                                         return Quantile(result.latency_s, fraction);
                                       });
    };
    std::vector<double> speeds;
    for (const planner::ReplayResult& result : runs.saturated) {
      speeds.push_back(result.tokens_per_s());
    }
    const auto [slowest, fastest] = std::ranges::minmax(speeds);
    const planner::ReplayResult& first = runs.saturated.front();
    json::object line = {
        {"bench", "routing"},
        {"mode", options_.is_virtual ? "virtual" : "real"},
        {"trace", trace.name},
        {"policy", runs.policy},
        {"ranks", options_.ranks},
        {"requests", trace.requests.size()},
        {"in_flight_per_rank", in_flight_per_rank_},
        {"asked_tokens", first.asked_tokens},
        {"tokens_per_s", Median(speeds)},
        {"tokens_per_s_range", {slowest, fastest}},
        {"load", options_.load},
        {"p50_ms", milliseconds(0.5)},
        {"p99_ms", milliseconds(0.99)},
        {"redundancy", MedianOf(runs.saturated, [](const auto& r) { return r.redundancy(); })},
        {"hit_rate", MedianOf(runs.saturated, [](const auto& r) { return r.hit_rate(); })},
        {"saved_rate", MedianOf(runs.saturated, [](const auto& r) { return r.saved_rate(); })},
        {"ideal_hit_rate", planner::IdealHitRate(trace)}};
    for (const PolicyRuns& other : all) {
      if (runs.policy == "full" && other.policy != "full") {
        line["over_" + other.policy] = Throughput(runs) / Throughput(other);
      }
    }
    if (options_.is_virtual) {
      line["machine"] = options_.machine;
      line["utilisation"] = first.busy_seconds / first.seconds / options_.ranks;
      line["exposed_wait_fraction"] = first.exposed_wait_seconds / first.busy_seconds;
      line["least_utilisation"] = first.least_busy_seconds / first.seconds;
      line["pass_tokens"] = static_cast<double>(first.computed_tokens) / first.pass_count;
      line["bound_tokens_per_s"] = static_cast<double>(first.asked_tokens) / first.least_seconds;
      line["loaded_tokens_per_s"] = first.loaded_tokens_per_s();
      line["of_bound"] = first.least_seconds / first.seconds;
      if (!runs.steady.empty()) {
        line["steady_saved_rate"] = runs.steady.front().saved_rate();
      }
    } else {
      line["kernels"] = real_ranks_->kernels_name();
      line["rounds"] = runs.saturated.size();
    }
    if (options_.json) {
      fmt::print("{}\n", json::serialize(line));
    } else {
      fmt::print(
          "{:<14} {:<15} {:>12.0f} tokens/s  p50 {:>8.1f} ms  p99 {:>9.1f} ms  redundancy "
          "{:.3f}  hit rate {:.3f}\n",
          trace.name,
          runs.policy,
          Median(speeds),
          milliseconds(0.5),
          milliseconds(0.99),
          line["redundancy"].as_double(),
          line["hit_rate"].as_double());
    }
    std::fflush(stdout);
  }

  const RoutingOptions options_;
  spec::ModelSpec spec_;
  planner::MachineModel machine_;   // of virtual ranks
  int32_t in_flight_per_rank_ = 0;  // of the trace that runs
  Replay replay_;
  std::unique_ptr<RoutingRanks> real_ranks_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
};

}  // namespace

void AddBenchRoutingCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "routing",
      "Routing policies on the same trace: throughput with many requests in flight, then latency "
      "at a share of what the best policy bears");
  const auto options = std::make_shared<RoutingOptions>();
  command->add_option("--ranks", options->ranks, "Ranks that the work is spread over")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_flag("--virtual",
                    options->is_virtual,
                    "Ranks of --machine in virtual time instead of engines of this process");
  command
      ->add_option("--trace,--traces",
                   options->traces,
                   "few-shot, documents, rerank, conversation, uneven, long-tail (made from "
                   "--seed); or NAME=FILE: an Azure or Mooncake trace or evaluation requests, also "
                   ".xz; a bare FILE is its own name; NAME=A+B mixes them")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--policies", options->policies, "To compare")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--tokenizer", options->tokenizer, "For files of evaluation requests");
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "0: all of virtual ranks, 2 of real ones")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "Of real ranks: bf16 or f32")
      ->capture_default_str();
  command->add_option("--machine", options->machine, "Of virtual ranks: h100-nvlink, h100-pcie5")
      ->capture_default_str();
  command->add_option("--prefix-cache",
                      options->cache,
                      "Of each rank, e.g. 2GiB (default: 32GiB of virtual ranks, 256MiB of real)");
  command->add_option("--requests", options->requests, "0: 500 per virtual rank, 200 per real one")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option(
          "--in-flight",
          options->in_flight_per_rank,
          "Requests per rank while throughput is taken; 0: enough for twice T* of new tokens, "
          "from 64 up to a quarter of the trace; 16 of real ranks")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--think-ms",
                   options->think_ms,
                   "Of a virtual client between an answer and its next request, on average")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--load", options->load, "Of what the best policy bears, for latency; 0: none")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command
      ->add_option("--max-batch-tokens",
                   options->max_batch_tokens,
                   "0: 32768 of virtual ranks, 16384 of real ones")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--max-hold-ms", options->max_hold_ms, "As serve's")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "0: 1 in virtual time, 5 interleaved in real")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the traces that are made")
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line per trace and policy");
  command->callback([options] { ExitOnError(RoutingBench(*options).Run()); });
}

}  // namespace zp::apps
