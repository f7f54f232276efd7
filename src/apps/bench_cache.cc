#include "apps/bench_cache.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "base/status.h"
#include "base/units.h"
#include "boost/json.hpp"
#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "fmt/format.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct CacheOptions {
  std::string shape = "qwen3-30b-a3b";
  int32_t layers = 4;
  int64_t tokens = 8192;
  int64_t prompt_tokens = 1024;
  int64_t new_tokens = 32;
  std::string prefix_cache = "1GiB";
  int threads = 0;
  std::string dtype = "bf16";
  int rounds = 5;
  uint64_t seed = 1;
};

// Passes of one kind, one a round.
struct Passes {
  std::vector<double> seconds = {};
  std::vector<double> tokens_per_s = {};  // asked
  int64_t cached_tokens = 0;
  int64_t evicted_blocks = 0;

  absl::Status Run(engine::Engine& engine, const std::vector<protocol::Work>& works) {
    const engine::BatchResult result = engine.Run(PointersTo(works));
    for (const auto& work : result.works) {
      ZP_RETURN_IF_ERROR(work.status());
    }
    const engine::PassReport& report = result.report;
    seconds.push_back(report.seconds);
    tokens_per_s.push_back(static_cast<double>(report.asked_tokens) / report.seconds);
    cached_tokens += report.cached_tokens;
    evicted_blocks += std::ssize(report.cache_events.removed);
    return absl::OkStatus();
  }
};

class CacheBench {
 public:
  explicit CacheBench(CacheOptions options) : options_(std::move(options)) {}

  absl::Status Run() {
    ZP_RETURN_IF_ERROR(StartEngines());
    ZP_RETURN_IF_ERROR(RunRound(-1));  // makes kernels, takes memory
    without_ = fresh_ = again_ = Passes();
    for (int round = 0; round < options_.rounds; ++round) {
      ZP_RETURN_IF_ERROR(RunRound(round));
    }
    Print();
    return absl::OkStatus();
  }

 private:
  absl::Status StartEngines() {
    ZP_ASSIGN_OR_RETURN(const spec::DType dtype, ParseDType(options_.dtype));
    ZP_ASSIGN_OR_RETURN(const int64_t cache_bytes, base::ParseBytes(options_.prefix_cache));
    ZP_ASSIGN_OR_RETURN(spec::ModelSpec spec, spec::FindModelShape(options_.shape));
    if (options_.layers < 1 || options_.layers > spec.layer_count) {
      return absl::InvalidArgumentError(
          fmt::format("--layers is {}; this shape has 1 to {}", options_.layers, spec.layer_count));
    }
    if (options_.new_tokens >= options_.prompt_tokens ||
        options_.tokens % options_.prompt_tokens != 0) {
      return absl::InvalidArgumentError(
          "--prompt-tokens must divide --tokens and be more than --new-tokens");
    }
    spec = spec::WithLayerCount(std::move(spec), options_.layers);
    ZP_ASSIGN_OR_RETURN(
        const std::shared_ptr<const engine::HostModel> host_model,
        engine::HostModel::Load(*checkpoint::CreateSynthetic(spec, options_.seed),
                                {.activation_dtype = dtype, .thread_count = options_.threads}));
    ZP_ASSIGN_OR_RETURN(plain_,
                        engine::Engine::Create(host_model, {.thread_count = options_.threads}));
    ZP_ASSIGN_OR_RETURN(
        cached_,
        engine::Engine::Create(
            host_model, {.thread_count = options_.threads, .prefix_cache_bytes = cache_bytes}));
    return absl::OkStatus();
  }

  // Prompts that nobody saw before, without and with a cache in turns; then the same with other
  // last tokens.
  absl::Status RunRound(int round) {
    const uint64_t seed = options_.seed + 2 * static_cast<uint64_t>(round + 1);
    std::vector<protocol::Work> works = Prompts(seed);
    if (round % 2 == 0) {
      ZP_RETURN_IF_ERROR(without_.Run(*plain_, works));
    }
    ZP_RETURN_IF_ERROR(fresh_.Run(*cached_, works));
    if (round % 2 != 0) {
      ZP_RETURN_IF_ERROR(without_.Run(*plain_, works));
    }
    const std::vector<protocol::Work> others = Prompts(seed + 1);
    for (size_t i = 0; i < works.size(); ++i) {
      std::copy_n(others[i].sequences[0].tokens.rbegin(),
                  options_.new_tokens,
                  works[i].sequences[0].tokens.rbegin());
    }
    return again_.Run(*cached_, works);
  }

  std::vector<protocol::Work> Prompts(uint64_t seed) const {
    return RandomPrompts(options_.tokens, options_.prompt_tokens, plain_->spec().vocab_count, seed);
  }

  void Print() const {
    const json::object line = {
        {"bench", "cache"},
        {"shape", options_.shape},
        {"layers", options_.layers},
        {"kernels", plain_->kernels_name()},
        {"tokens", options_.tokens},
        {"prompt_tokens", options_.prompt_tokens},
        {"new_tokens", options_.new_tokens},
        {"prefix_cache", options_.prefix_cache},
        {"rounds", options_.rounds},
        {"tokens_per_s_without", Median(without_.tokens_per_s)},
        {"tokens_per_s_again", Median(again_.tokens_per_s)},
        {"again_over_without", RatioOf(again_.tokens_per_s, without_.tokens_per_s)},
        {"fresh_over_without", RatioOf(fresh_.tokens_per_s, without_.tokens_per_s)},
        {"cached_tokens_again", again_.cached_tokens / options_.rounds},
        {"cached_tokens_fresh", fresh_.cached_tokens / options_.rounds},
        {"evicted_blocks", fresh_.evicted_blocks + again_.evicted_blocks}};
    fmt::print("{}\n", json::serialize(line));
  }

  const CacheOptions options_;
  std::unique_ptr<engine::Engine> plain_;
  std::unique_ptr<engine::Engine> cached_;
  Passes without_, fresh_, again_;
};

}  // namespace

void AddBenchCacheCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("cache",
                                           "The prefix cache over none: tokens/s when prompts come "
                                           "back with other last tokens, and when "
                                           "nothing comes back");
  const auto options = std::make_shared<CacheOptions>();
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Layers to keep")->capture_default_str();
  command->add_option("--tokens", options->tokens, "Tokens per pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--prompt-tokens", options->prompt_tokens, "Tokens per prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--new-tokens", options->new_tokens, "Last tokens that differ the next time")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--prefix-cache", options->prefix_cache, "Its bytes, e.g. 1GiB")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Compute threads; 0 = one per core")
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "bf16 or f32")->capture_default_str();
  command->add_option("--rounds", options->rounds, "Interleaved; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of weights and prompts")->capture_default_str();
  command->callback([options] { ExitOnError(CacheBench(*options).Run()); });
}

}  // namespace zp::apps
