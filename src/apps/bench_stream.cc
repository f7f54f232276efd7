#include "apps/bench_stream.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "apps/bench_packed.h"
#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "base/trace.h"
#include "base/units.h"
#include "boost/json.hpp"
#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "engine/host_model.h"
#include "fmt/format.h"
#include "ops/cpu/cpu_kernels.h"
#include "spec/model_shapes.h"
#include "spec/saturation.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct StreamOptions {
  std::string shape = "qwen3-30b-a3b";
  int32_t layers = 16;
  int32_t resident_layers = 4;
  std::string expert_memory = "4GiB";
  std::vector<int64_t> tokens = {16384};
  int64_t prompt_tokens = 256;
  int threads = 0;
  int rounds = 5;
  int32_t window_slots = 2;
  std::string weights = "bf16";
  std::string work_directory;
  std::string trace_path;
  bool json = false;
};

// The layers that tell something: the first ones were fetched while nothing ran, the last runs only
// the rows that were asked.
constexpr int32_t kSkippedFirstLayers = 2;

struct LayerTimes {
  std::vector<double> layer_seconds;  // of each pass: mean over its layers
  std::vector<double> wait_fraction;
  std::vector<double> gather_seconds;
  double gathered_bytes = 0;  // of a layer
  // Of whole passes: embedding, all layers and waits, logits.
  std::vector<double> pass_seconds;
  double pass_flops = 0;
};

struct Case {
  int64_t tokens = 0;
  LayerTimes streamed = {};
  LayerTimes resident = {};
  std::vector<double> peak_flops_per_s = {};
};

void Record(const engine::PassReport& report, int32_t first_layer, LayerTimes& times) {
  double compute = 0;
  double wait = 0;
  double gather = 0;
  double bytes = 0;
  int count = 0;
  for (size_t layer = first_layer; layer + 1 < report.layers.size(); ++layer) {
    compute += report.layers[layer].compute_seconds;
    wait += report.layers[layer].exposed_wait_seconds;
    gather += report.layers[layer].gather_seconds;
    bytes += static_cast<double>(report.layers[layer].gathered_bytes);
    ++count;
  }
  times.layer_seconds.push_back((compute + wait) / count);
  times.wait_fraction.push_back(wait / (compute + wait));
  times.gather_seconds.push_back(gather / count);
  times.gathered_bytes = bytes / count;
  times.pass_seconds.push_back(report.seconds);
  times.pass_flops = report.flops;
}

absl::StatusOr<std::unique_ptr<engine::Engine>> OpenEngine(
    const checkpoint::Checkpoint& checkpoint,
    const engine::HostModelOptions& model_options,
    const engine::EngineOptions& engine_options) {
  ZP_ASSIGN_OR_RETURN(std::shared_ptr<const engine::HostModel> host_model,
                      engine::HostModel::Load(checkpoint, model_options));
  return engine::Engine::Create(std::move(host_model), engine_options);
}

absl::Status RunPass(engine::Engine& engine,
                     int64_t tokens,
                     int64_t prompt_tokens,
                     uint64_t seed,
                     int32_t first_layer,
                     LayerTimes& times) {
  const std::vector<protocol::Work> works =
      RandomPrompts(tokens, std::min(tokens, prompt_tokens), engine.spec().vocab_count, seed);
  const engine::BatchResult result = engine.Run(PointersTo(works));
  for (const auto& work : result.works) {
    ZP_RETURN_IF_ERROR(work.status());
  }
  Record(result.report, first_layer, times);
  return absl::OkStatus();
}

// Until a window has filled itself: nobody's bytes are to move while the other engine is measured.
void AwaitWindow(const LayerTimes& streamed) {
  const double seconds = streamed.gather_seconds.empty() ? 0 : 2.5 * streamed.gather_seconds.back();
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

json::object ToJson(const Case& bench_case,
                    const StreamOptions& options,
                    const spec::ModelSpec& spec,
                    double bytes_per_s,
                    double resident_fraction) {
  std::vector<double> ratios;
  for (size_t round = 0; round < bench_case.streamed.layer_seconds.size(); ++round) {
    ratios.push_back(bench_case.resident.layer_seconds[round] /
                     bench_case.streamed.layer_seconds[round]);
  }
  const auto [low, high] = std::ranges::minmax(ratios);
  const double peak = Median(bench_case.peak_flops_per_s);
  const double compute_seconds = Median(bench_case.resident.layer_seconds);
  const double context =
      static_cast<double>(std::min(bench_case.tokens, options.prompt_tokens)) / 2;
  const double token_flops = spec::LayerFlopsPerToken(spec, context);
  const auto tokens = static_cast<double>(bench_case.tokens);
  const double achieved = tokens * token_flops / compute_seconds;
  const double gather_seconds = bench_case.streamed.gathered_bytes / bytes_per_s;
  return {
      {"bench", "stream"},
      {"shape", options.shape},
      {"weights", options.weights},
      {"layers", spec.layer_count},
      {"tokens", bench_case.tokens},
      {"expert_memory_bytes", *base::ParseBytes(options.expert_memory)},
      {"resident_fraction", resident_fraction},
      {"ratio", Median(ratios)},
      {"ratio_low", low},
      {"ratio_high", high},
      {"predicted_ratio", std::min(1.0, compute_seconds / gather_seconds)},
      {"exposed_wait_fraction", Median(bench_case.streamed.wait_fraction)},
      {"streamed_layer_seconds", Median(bench_case.streamed.layer_seconds)},
      {"resident_layer_seconds", compute_seconds},
      {"layer_tokens_per_s", tokens / Median(bench_case.streamed.layer_seconds)},
      {"tokens_per_s", tokens / Median(bench_case.streamed.pass_seconds)},
      {"flops_per_s", bench_case.streamed.pass_flops / Median(bench_case.streamed.pass_seconds)},
      {"gather_bytes_per_layer", bench_case.streamed.gathered_bytes},
      {"source_bytes_per_s", bytes_per_s},
      {"saturation_tokens", spec::SaturationTokens(gather_seconds, achieved, token_flops)},
      {"saturation_tokens_at_peak", spec::SaturationTokens(gather_seconds, peak, token_flops)},
      {"peak_flops_per_s", peak},
      {"mfu", achieved / peak},
      {"rounds", options.rounds}};
}

void Print(const json::object& line, bool as_json) {
  if (as_json) {
    fmt::print("{}\n", json::serialize(line));
  } else {
    const auto number = [&](const char* key) { return line.at(key).to_number<double>(); };
    fmt::print(
        "{:>6} tokens: {:.3f} of resident ({:.3f}-{:.3f}), predicted {:.3f}, exposed wait {:.1f} "
        "%, "
        "T* {:.0f} tokens, files {:.2f} GB/s\n",
        line.at("tokens").as_int64(),
        number("ratio"),
        number("ratio_low"),
        number("ratio_high"),
        number("predicted_ratio"),
        100 * number("exposed_wait_fraction"),
        number("saturation_tokens"),
        number("source_bytes_per_s") / 1e9);
  }
  std::fflush(stdout);
}

absl::Status RunStream(const StreamOptions& options) {
  ZP_ASSIGN_OR_RETURN(const spec::ModelSpec shape, spec::FindModelShape(options.shape));
  if (options.layers > shape.layer_count || options.layers < kSkippedFirstLayers + 2) {
    return absl::InvalidArgumentError(fmt::format("--layers is {}, but must be from {} to {}",
                                                  options.layers,
                                                  kSkippedFirstLayers + 2,
                                                  shape.layer_count));
  }
  const spec::ModelSpec spec = spec::WithLayerCount(shape, options.layers);
  ZP_ASSIGN_OR_RETURN(const int64_t memory_bytes, base::ParseBytes(options.expert_memory));
  const int threads =
      options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  base::ThreadPool pool(threads);
  ZP_ASSIGN_OR_RETURN(
      const std::string directory,
      PackedBenchDirectory(options.shape,
                           spec,
                           options.work_directory,
                           pool,
                           options.weights == "fp8" ? std::optional(checkpoint::kPublishedFp8Blocks)
                                                    : std::nullopt));
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoint::Checkpoint> packed,
                      checkpoint::Checkpoint::Open(directory));
  base::Trace trace;
  ZP_ASSIGN_OR_RETURN(std::shared_ptr<const engine::HostModel> host_model,
                      engine::HostModel::Load(*packed,
                                              {.thread_count = threads,
                                               .expert_memory_bytes = memory_bytes,
                                               .window_slot_count = options.window_slots}));
  const double resident_fraction = host_model->resident_fraction();
  ZP_ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::Engine> streamed,
      engine::Engine::Create(
          std::move(host_model),
          {.thread_count = threads, .trace = options.trace_path.empty() ? nullptr : &trace}));
  ZP_ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::Engine> resident,
      OpenEngine(
          *checkpoint::CreateSynthetic(
              spec::WithLayerCount(spec, std::min(options.resident_layers, options.layers)), 1),
          {.thread_count = threads},
          {.thread_count = threads}));
  std::vector<Case> cases;
  for (const int64_t tokens : options.tokens) {
    cases.push_back({.tokens = tokens});
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (Case& bench_case : cases) {
      ZP_RETURN_IF_ERROR(RunPass(*streamed,
                                 bench_case.tokens,
                                 options.prompt_tokens,
                                 round,
                                 kSkippedFirstLayers,
                                 bench_case.streamed));
      AwaitWindow(bench_case.streamed);
      bench_case.peak_flops_per_s.push_back(ops::cpu::MeasurePeakFlops(spec::DType::kBf16, pool));
      ZP_RETURN_IF_ERROR(RunPass(
          *resident, bench_case.tokens, options.prompt_tokens, round, 0, bench_case.resident));
    }
  }
  // Where compute waits, the files are read back to back: that is their speed.
  const Case& smallest = *std::ranges::min_element(cases, {}, &Case::tokens);
  const double bytes_per_s =
      smallest.streamed.gathered_bytes / Median(smallest.streamed.gather_seconds);
  for (const Case& bench_case : cases) {
    Print(ToJson(bench_case, options, spec, bytes_per_s, resident_fraction), options.json);
  }
  return options.trace_path.empty() ? absl::OkStatus() : trace.Write(options.trace_path);
}

}  // namespace

void AddBenchStreamCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "stream",
      "A model larger than its memory: experts that stream from files behind the compute, beside "
      "the same layers with all experts in memory");
  const auto options = std::make_shared<StreamOptions>();
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Layers to stream")->capture_default_str();
  command
      ->add_option("--resident-layers",
                   options->resident_layers,
                   "Layers of the engine that is compared with, all in memory")
      ->check(CLI::Range(2, 1000))
      ->capture_default_str();
  command->add_option("--expert-memory", options->expert_memory, "For kept experts and the window")
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Tokens per pass, one case each")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--prompt-tokens", options->prompt_tokens, "Tokens per prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option(
          "--weights", options->weights, "Numbers of the streamed experts; fp8 halves their bytes")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->capture_default_str();
  command->add_option("--window-slots", options->window_slots, "Layers in use or on their way")
      ->check(CLI::Range(2, 16))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Compute threads; 0 = one per core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "Passes per case, interleaved")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--work",
                      options->work_directory,
                      "Where the packed weights are made and kept (default: /var/tmp)");
  command->add_option(
      "--trace", options->trace_path, "Write a Chrome trace of the streamed passes");
  command->add_flag("--json", options->json, "One JSON line per case");
  command->callback([options] { ExitOnError(RunStream(*options)); });
}

}  // namespace zp::apps
