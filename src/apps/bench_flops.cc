#include "apps/bench_flops.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "base/status.h"
#include "boost/json.hpp"
#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "fmt/format.h"
#include "planner/trace.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct FlopsOptions {
  std::string shape = "qwen3-30b-a3b";
  int32_t layers = 2;
  std::string dtype = "bf16";
  std::vector<std::string> traces = {
      "few-shot", "documents", "rerank", "conversation", "uneven", "long-tail"};
  std::vector<int64_t> tokens = {4096, 16384};
  int threads = 0;
  int rounds = 5;
  bool json = false;
};

// One pass of so many requests of a trace as have the tokens asked.
struct Pass {
  std::string name;
  std::vector<protocol::Work> works = {};
  double flops = 0;
  int64_t computed_tokens = 0;
  std::vector<double> seconds = {};
};

// As an evaluation asks: every row with the whole vocabulary.
void AskForEcho(protocol::Work& work) {
  for (protocol::Sequence& sequence : work.sequences) {
    sequence.rows.clear();
    for (int32_t position = 0; position < static_cast<int32_t>(sequence.tokens.size());
         ++position) {
      sequence.rows.push_back(
          {.position = position, .columns = {sequence.tokens[position]}, .full_vocabulary = true});
    }
  }
}

class FlopsBench {
 public:
  explicit FlopsBench(FlopsOptions options) : options_(std::move(options)) {}

  absl::Status Run() {
    ZP_RETURN_IF_ERROR(StartEngine());
    ZP_RETURN_IF_ERROR(MakePasses());
    for (int round = 0; round <= options_.rounds; ++round) {  // the first makes kernels
      for (Pass& pass : passes_) {
        ZP_RETURN_IF_ERROR(RunPass(pass, round > 0));
      }
    }
    Print();
    return absl::OkStatus();
  }

 private:
  absl::Status StartEngine() {
    ZP_ASSIGN_OR_RETURN(const spec::DType dtype, ParseDType(options_.dtype));
    ZP_ASSIGN_OR_RETURN(const spec::ModelSpec shape, spec::FindModelShape(options_.shape));
    ZP_ASSIGN_OR_RETURN(
        std::shared_ptr<const engine::HostModel> host_model,
        engine::HostModel::Load(
            *checkpoint::CreateSynthetic(spec::WithLayerCount(shape, options_.layers), 1),
            {.activation_dtype = dtype, .thread_count = options_.threads}));
    ZP_ASSIGN_OR_RETURN(
        engine_, engine::Engine::Create(std::move(host_model), {.thread_count = options_.threads}));
    return absl::OkStatus();
  }

  absl::Status MakePasses() {
    uint64_t seed = 1;
    for (const std::string& name : options_.traces) {
      for (const int64_t tokens : options_.tokens) {
        ZP_ASSIGN_OR_RETURN(Pass pass, MakePass(name, tokens, seed++));
        passes_.push_back(std::move(pass));
      }
    }
    ZP_ASSIGN_OR_RETURN(Pass echo, MakePass("long-tail", options_.tokens.front(), seed));
    echo.name = fmt::format("echo of 256, {} tokens", options_.tokens.front());
    std::ranges::for_each(echo.works, AskForEcho);
    passes_.push_back(std::move(echo));
    return absl::OkStatus();
  }

  absl::StatusOr<Pass> MakePass(const std::string& name, int64_t tokens, uint64_t seed) const {
    constexpr int32_t kMaxPromptTokens = 16384;
    ZP_ASSIGN_OR_RETURN(const planner::Trace trace,
                        planner::GenerateTrace(name, static_cast<int32_t>(tokens / 16), seed));
    Pass pass{.name = fmt::format("{}, {} tokens", name, tokens)};
    int64_t asked_tokens = 0;
    for (const planner::TraceRequest& request : trace.requests) {
      if (asked_tokens >= tokens) {
        break;
      }
      pass.works.push_back(planner::MakeWork(
          request, "flops", static_cast<int32_t>(engine_->spec().vocab_count), kMaxPromptTokens));
      asked_tokens += pass.works.back().token_count();
    }
    return pass;
  }

  absl::Status RunPass(Pass& pass, bool is_counted) {
    const engine::BatchResult result = engine_->Run(PointersTo(pass.works));
    for (const auto& work : result.works) {
      ZP_RETURN_IF_ERROR(work.status());
    }
    pass.flops = result.report.flops;
    pass.computed_tokens = result.report.computed_tokens;
    if (is_counted) {
      pass.seconds.push_back(result.report.seconds);
    }
    return absl::OkStatus();
  }

  void Print() const {
    std::vector<double> rates;
    double mean_seconds = 0;
    for (const Pass& pass : passes_) {
      rates.push_back(pass.flops / Median(pass.seconds));
      mean_seconds += Median(pass.seconds) / static_cast<double>(passes_.size());
    }
    // One number of the machine, the median: what a router would have learnt.
    const double flops_per_s = Median(rates);
    double worst_error = 0;
    double residual = 0;
    double variance = 0;
    for (const Pass& pass : passes_) {
      const double seconds = Median(pass.seconds);
      const double predicted = pass.flops / flops_per_s;
      worst_error = std::max(worst_error, std::abs(predicted / seconds - 1));
      residual += std::pow(predicted - seconds, 2);
      variance += std::pow(seconds - mean_seconds, 2);
      PrintPass(pass, seconds, predicted);
    }
    const json::object line = {{"bench", "flops"},
                               {"shape", options_.shape},
                               {"layers", options_.layers},
                               {"kernels", engine_->kernels_name()},
                               {"rounds", options_.rounds},
                               {"passes", passes_.size()},
                               {"flops_per_s", flops_per_s},
                               {"r_squared", 1 - residual / variance},
                               {"worst_error", worst_error}};
    if (options_.json) {
      fmt::print("{}\n", json::serialize(line));
    } else {
      fmt::print("R2 {:.4f}, worst error {:.1f} % at {:.1f} GFLOP/s\n",
                 1 - residual / variance,
                 100 * worst_error,
                 flops_per_s / 1e9);
    }
  }

  void PrintPass(const Pass& pass, double seconds, double predicted) const {
    if (options_.json) {
      fmt::print("{}\n",
                 json::serialize(json::object{{"bench", "flops"},
                                              {"pass", pass.name},
                                              {"computed_tokens", pass.computed_tokens},
                                              {"flops", pass.flops},
                                              {"seconds", seconds},
                                              {"predicted_seconds", predicted}}));
    } else {
      fmt::print("{:<28} {:>6} tokens {:8.1f} GFLOP {:8.3f} s, predicted {:8.3f} s ({:+.1f} %)\n",
                 pass.name,
                 pass.computed_tokens,
                 pass.flops / 1e9,
                 seconds,
                 predicted,
                 100 * (predicted / seconds - 1));
    }
  }

  const FlopsOptions options_;
  std::unique_ptr<engine::Engine> engine_;
  std::vector<Pass> passes_;
};

}  // namespace

void AddBenchFlopsCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "flops", "Seconds of passes over unlike requests against their true FLOPs");
  const auto options = std::make_shared<FlopsOptions>();
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Layers to keep")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "bf16 or f32")->capture_default_str();
  command->add_option("--traces", options->traces, "Of those that `bench routing` knows")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Asked per pass, before sharing")
      ->delimiter(',')
      ->check(CLI::Range(256, 1 << 20))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Compute threads; 0 = one per core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "Passes of each kind, interleaved")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line per pass and one for all");
  command->callback([options] { ExitOnError(FlopsBench(*options).Run()); });
}

}  // namespace zp::apps
