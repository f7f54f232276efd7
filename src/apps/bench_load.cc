#include "apps/bench_load.h"

#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "apps/load_cases.h"
#include "apps/scratch_directory.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/synthetic.h"

namespace zp::apps {
namespace {

struct LoadOptions {
  LoadSetting setting;
  std::vector<std::string> cases = {"overload", "cold", "mixed"};
  std::string directory;  // empty: a small random model
  std::string dtype = "f32";
  std::string serve_flags;
  bool json = false;
};

// So small that a core does thousands of its tokens a second. Attention is half of what a prompt of
// 16K tokens costs, as it is with qwen3-30b-a3b.
spec::ModelSpec SmallModel(int64_t max_tokens) {
  constexpr int32_t kLayers = 3;
  spec::ModelSpec spec;
  spec.family = "qwen3_moe";
  spec.layer_count = kLayers;
  spec.model_dim = 256;
  spec.vocab_count = 1024;
  spec.max_position_count = static_cast<int32_t>(max_tokens) + 1;
  spec.query_head_count = 2;
  spec.kv_head_count = 1;
  spec.head_dim = 64;
  spec.has_qk_norm = true;
  spec.expert_count = 16;
  spec.experts_per_token = 4;
  spec.expert_dim = 640;
  spec.normalize_top_k = true;
  spec.dense_ffn_dim = 256;
  spec.layer_is_moe.assign(kLayers, true);
  return spec;
}

absl::Status RunCase(const std::string& name, const LoadSetting& setting, bool as_json) {
  const auto print = [&](const absl::StatusOr<boost::json::object>& line) {
    if (line.ok()) {
      PrintCase(*line, as_json);
    }
    return line.status();
  };
  if (name == "overload") {
    return print(RunOverload(setting));
  }
  if (name == "cold") {
    return print(RunCold(setting));
  }
  ZP_RETURN_IF_ERROR(print(RunMixed(setting, /*has_prefix_cache=*/true)));
  return print(RunMixed(setting, /*has_prefix_cache=*/false));
}

absl::Status RunLoad(const LoadOptions& options) {
  RaiseDescriptorLimit();  // a connection for each request that waits
  LoadSetting setting = options.setting;
  ScratchDirectory scratch;
  std::string directory = options.directory;
  if (directory.empty()) {
    ZP_ASSIGN_OR_RETURN(scratch, ScratchDirectory::Create("load"));
    directory = scratch.path() + "/model";
    ZP_RETURN_IF_ERROR(checkpoint::WriteSynthetic(
        SmallModel(setting.long_tokens), setting.seed, directory, [](int64_t, int64_t) {}));
  }
  ZP_ASSIGN_OR_RETURN(const spec::ModelSpec spec,
                      checkpoint::ReadModelSpec(directory + "/config.json"));
  setting.vocab_count = spec.vocab_count;
  setting.serve_flags = {"--model", directory, "--dtype", options.dtype};
  std::istringstream words(options.serve_flags);
  for (std::string word; words >> word;) {
    setting.serve_flags.push_back(word);
  }
  for (const std::string& name : options.cases) {
    ZP_RETURN_IF_ERROR(RunCase(name, setting, options.json));
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchLoadCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "load", "A server over HTTP under too much load, and with long requests among short ones");
  const auto options = std::make_shared<LoadOptions>();
  LoadSetting& setting = options->setting;
  command->add_option("--cases", options->cases, "overload, cold, mixed")
      ->delimiter(',')
      ->check(CLI::IsMember({"overload", "cold", "mixed"}))
      ->capture_default_str();
  command->add_option(
      "--model", options->directory, "Hugging Face model directory (default: a small random one)");
  command->add_option("--dtype", options->dtype, "Activations: bf16 or f32")->capture_default_str();
  command->add_option("--serve-flags", options->serve_flags, "More flags of `serve`, in one word");
  command->add_option("--short-tokens", setting.short_tokens, "Of most requests")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--long-tokens", setting.long_tokens, "Of the long ones")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--long-every", setting.long_every, "One in so many requests is long")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--in-flight", setting.in_flight, "Requests in the closed loop")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seconds", setting.seconds, "Of each load")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--overload", setting.overload, "Times the capacity")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--load", setting.load, "Of the capacity, in the mixed case")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  command->add_option("--max-backlog-seconds", setting.max_backlog_seconds, "As of `serve`")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--prefix-cache", setting.prefix_cache, "Of the mixed case that has one")
      ->capture_default_str();
  command->add_option("--seed", setting.seed, "Of arrivals, prompts and the random model")
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line per case");
  command->callback([options] { ExitOnError(RunLoad(*options)); });
}

}  // namespace zp::apps
