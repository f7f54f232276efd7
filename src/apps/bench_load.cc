#include "apps/bench_load.h"

#include <sys/resource.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "apps/command.h"
#include "apps/load_cases.h"
#include "boost/json/serialize.hpp"
#include "checkpoint/checkpoint.h"
#include "checkpoint/synthetic.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace fs = std::filesystem;

struct LoadOptions {
  LoadSetting setting;
  std::vector<std::string> cases = {"overload", "cold", "mixed"};
  std::string directory;  // empty: a small random model
  std::string dtype = "f32";
  std::string serve_flags;
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

// A directory that goes with it.
class ScratchDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchDirectory>> Create() {
    std::string path = (fs::temp_directory_path() / "zeroprefill_load_XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) {
      return absl::InternalError(fmt::format("{}: cannot be made", path));
    }
    return std::unique_ptr<ScratchDirectory>(new ScratchDirectory(std::move(path)));
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit ScratchDirectory(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// A connection for each request that waits, here and, by inheritance, in the servers.
void RaiseFileLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

absl::Status RunCase(const std::string& name, const LoadSetting& setting) {
  const auto print = [](const absl::StatusOr<boost::json::object>& line) {
    if (line.ok()) {
      fmt::print("{}\n", boost::json::serialize(*line));
      std::fflush(stdout);
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
  RaiseFileLimit();
  LoadSetting setting = options.setting;
  std::unique_ptr<ScratchDirectory> scratch;
  std::string directory = options.directory;
  if (directory.empty()) {
    ZP_ASSIGN_OR_RETURN(scratch, ScratchDirectory::Create());
    directory = scratch->path() + "/model";
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
    ZP_RETURN_IF_ERROR(RunCase(name, setting));
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
  command->callback([options] { ExitOnError(RunLoad(*options)); });
}

}  // namespace zp::apps
