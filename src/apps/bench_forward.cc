#include "apps/bench_forward.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "boost/json.hpp"
#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "fmt/format.h"
#include "ops/cpu/cpu_kernels.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct ForwardOptions {
  std::string shape = "qwen3-30b-a3b";
  std::string config;
  int32_t layers = 4;
  std::vector<int64_t> tokens = {2048, 8192, 32768};
  std::vector<int64_t> prompt_tokens = {256, 2048, 32768};
  int threads = 0;
  std::string dtype = "bf16";
  int64_t chunk_tokens = engine::EngineOptions{}.chunk_tokens;
  int rounds = 5;
  uint64_t seed = 1;
  bool json = false;
};

struct Case {
  int64_t tokens = 0;
  int64_t prompt_tokens = 0;
  std::vector<double> seconds = {};
  std::vector<double> peak_flops_per_s =
      {};  // measured right before and after each pass; the larger
  std::vector<double> mfu = {};
  double flops = 0;
  double exposed_wait_seconds = 0;
  int64_t peak_memory_bytes = 0;  // over the weights
  std::map<std::string, double> seconds_by_op = {};
};

// A line "VmHWM:  1234 kB" of /proc/self/status, in bytes.
int64_t ProcessMemoryBytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) {
      return std::stoll(line.substr(field.size() + 1)) * 1024;
    }
  }
  return 0;
}

void ResetPeakMemory() { std::ofstream("/proc/self/clear_refs") << "5"; }

absl::Status RunRound(engine::Engine& engine,
                      base::ThreadPool& probe_pool,
                      spec::DType dtype,
                      uint64_t seed,
                      Case& bench_case) {
  const std::vector<protocol::Work> works =
      RandomPrompts(bench_case.tokens, bench_case.prompt_tokens, engine.spec().vocab_count, seed);
  const std::vector<const protocol::Work*> batch = PointersTo(works);
  const double peak_before = ops::cpu::MeasurePeakFlops(dtype, probe_pool);
  ResetPeakMemory();
  const int64_t weight_bytes = bench_case.peak_memory_bytes == 0 ? ProcessMemoryBytes("VmRSS") : 0;
  const engine::BatchResult result = engine.Run(batch);
  if (bench_case.peak_memory_bytes == 0) {  // the first pass takes its memory; later ones reuse it
    bench_case.peak_memory_bytes = ProcessMemoryBytes("VmHWM") - weight_bytes;
  }
  const double peak = std::max(peak_before, ops::cpu::MeasurePeakFlops(dtype, probe_pool));
  for (const auto& work : result.works) {
    ZP_RETURN_IF_ERROR(work.status());
  }
  const engine::PassReport& report = result.report;
  bench_case.seconds.push_back(report.seconds);
  bench_case.peak_flops_per_s.push_back(peak);
  bench_case.mfu.push_back(report.flops / report.seconds / peak);
  bench_case.flops = report.flops;
  bench_case.exposed_wait_seconds += report.exposed_wait_seconds;
  for (const auto& [op, seconds] : report.seconds_by_op) {
    bench_case.seconds_by_op[op] += seconds;
  }
  return absl::OkStatus();
}

json::object ToJson(const Case& bench_case,
                    const ForwardOptions& options,
                    const engine::Engine& engine,
                    int threads) {
  const double seconds = Median(bench_case.seconds);
  const auto tokens = static_cast<double>(bench_case.tokens);
  double total_seconds = 0;
  for (const double value : bench_case.seconds) {
    total_seconds += value;
  }
  json::object shares;
  for (const auto& [op, op_seconds] : bench_case.seconds_by_op) {
    shares[op] = op_seconds / total_seconds;
  }
  const auto [mfu_low, mfu_high] = std::ranges::minmax(bench_case.mfu);
  return {{"bench", "forward"},
          {"shape", options.config.empty() ? options.shape : options.config},
          {"layers", engine.spec().layer_count},
          {"tokens", bench_case.tokens},
          {"prompt_tokens", bench_case.prompt_tokens},
          {"threads", threads},
          {"kernels", engine.kernels_name()},
          {"rounds", bench_case.seconds.size()},
          {"tokens_per_s", tokens / seconds},
          {"tokens_per_s_range",
           {tokens / std::ranges::max(bench_case.seconds),
            tokens / std::ranges::min(bench_case.seconds)}},
          {"flops_per_token", bench_case.flops / tokens},
          {"flops_per_s", bench_case.flops / seconds},
          {"peak_flops_per_s", Median(bench_case.peak_flops_per_s)},
          {"mfu", Median(bench_case.mfu)},
          {"mfu_range", {mfu_low, mfu_high}},
          {"exposed_wait_fraction", bench_case.exposed_wait_seconds / total_seconds},
          {"memory_beyond_weights_bytes", bench_case.peak_memory_bytes},
          {"op_shares", shares}};
}

void PrintCase(const json::object& line, bool as_json) {
  if (as_json) {
    fmt::print("{}\n", json::serialize(line));
    return;
  }
  fmt::print(
      "{:>7} tokens of {:>6}-token prompts: {:8.0f} tokens/s, {:6.1f} of {:6.1f} GFLOP/s peak, mfu "
      "{:.3f}\n",
      line.at("tokens").as_int64(),
      line.at("prompt_tokens").as_int64(),
      line.at("tokens_per_s").as_double(),
      line.at("flops_per_s").as_double() / 1e9,
      line.at("peak_flops_per_s").as_double() / 1e9,
      line.at("mfu").as_double());
  for (const auto& [op, share] : line.at("op_shares").as_object()) {
    fmt::print("          {:<14} {:5.1f} %\n", std::string(op), 100 * share.as_double());
  }
}

absl::StatusOr<spec::ModelSpec> SpecOf(const ForwardOptions& options) {
  ZP_ASSIGN_OR_RETURN(spec::ModelSpec spec,
                      options.config.empty() ? spec::FindModelShape(options.shape)
                                             : checkpoint::ReadModelSpec(options.config));
  if (options.layers < 1 || options.layers > spec.layer_count) {
    return absl::InvalidArgumentError(
        fmt::format("--layers is {}; this shape has 1 to {}", options.layers, spec.layer_count));
  }
  return spec::WithLayerCount(std::move(spec), options.layers);
}

absl::Status RunForward(const ForwardOptions& options) {
  ZP_ASSIGN_OR_RETURN(const spec::ModelSpec spec, SpecOf(options));
  ZP_ASSIGN_OR_RETURN(const spec::DType dtype, ParseDType(options.dtype));
  const int threads =
      options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  ZP_ASSIGN_OR_RETURN(
      std::shared_ptr<const engine::HostModel> host_model,
      engine::HostModel::Load(*checkpoint::CreateSynthetic(spec, options.seed),
                              {.activation_dtype = dtype, .thread_count = threads}));
  ZP_ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::Engine> engine,
      engine::Engine::Create(std::move(host_model),
                             {.thread_count = threads, .chunk_tokens = options.chunk_tokens}));
  std::vector<Case> cases;
  for (const int64_t tokens : options.tokens) {
    for (const int64_t prompt_tokens : options.prompt_tokens) {
      if (prompt_tokens >= 1 && tokens % prompt_tokens == 0 &&
          prompt_tokens <= spec.max_position_count) {
        cases.push_back({.tokens = tokens, .prompt_tokens = prompt_tokens});
      }
    }
  }
  base::ThreadPool probe_pool(threads);
  for (int round = 0; round < options.rounds;
       ++round) {  // interleaved: every case feels the same weather
    for (Case& bench_case : cases) {
      ZP_RETURN_IF_ERROR(RunRound(*engine, probe_pool, dtype, options.seed + round, bench_case));
    }
  }
  for (const Case& bench_case : cases) {
    PrintCase(ToJson(bench_case, options, *engine, threads), options.json);
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchForwardCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("forward",
                                           "Forward passes over random prompts that share nothing; "
                                           "each prompt's last row of logits is asked");
  const auto options = std::make_shared<ForwardOptions>();
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--config", options->config, "A config.json instead of a named shape");
  command->add_option("--layers", options->layers, "Layers to keep")->capture_default_str();
  command->add_option("--tokens", options->tokens, "Tokens per pass, one case each")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--prompt-tokens",
                   options->prompt_tokens,
                   "Tokens per prompt; cases where they divide the tokens per pass")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Compute threads; 0 = one per core")
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "bf16 or f32")->capture_default_str();
  command
      ->add_option(
          "--chunk-tokens", options->chunk_tokens, "Rows that go through a step of a layer at once")
      ->capture_default_str();
  command
      ->add_option("--rounds", options->rounds, "Passes per case, interleaved; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of weights and prompts")->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line per case");
  command->callback([options] { ExitOnError(RunForward(*options)); });
}

}  // namespace zp::apps
