#include "apps/bench_tunnel.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "apps/bench_packed.h"
#include "apps/bench_prompts.h"
#include "apps/child_process.h"
#include "apps/command.h"
#include "apps/tunnel_links.h"
#include "base/thread_pool.h"
#include "boost/json.hpp"
#include "engine/host_model.h"
#include "fmt/format.h"
#include "fmt/ranges.h"
#include "spec/flops.h"
#include "spec/model_shapes.h"
#include "spec/saturation.h"

namespace zp::apps {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct TunnelOptions {
  int32_t ranks = 2;
  std::string shape = "qwen3-30b-a3b";
  int32_t layers = 3;
  std::string balance = "h100-nvlink";
  std::vector<std::string> cases = {"256", "4096"};
  int64_t tokens = 0;  // a rank's pass; 0: by `load`
  double load = 1.3;   // times T*
  std::vector<std::string> strategies = {"resident", "gather", "dispatch"};
  int rounds = 5;
  std::string work_directory;
  bool json = false;
};

constexpr std::chrono::seconds kAnswerTimeout(1800);
// One label is asked of each row: a larger vocabulary is memory and nothing else.
constexpr int32_t kVocabulary = 8192;

// FLOPs of a rank per byte of its link, H100: 990 TFLOP/s of bf16 over 450 GB/s of NVLink 4, or
// over a PCIe 5 x16 path of 64 GB/s.
absl::StatusOr<double> BytesPerFlop(const std::string& balance) {
  if (balance == "h100-nvlink") {
    return 1.0 / 2200;
  }
  if (balance == "pcie5") {
    return 1.0 / 15000;
  }
  double bytes_per_flop = 0;
  if (!absl::SimpleAtod(balance, &bytes_per_flop) || !(bytes_per_flop > 0)) {
    return absl::InvalidArgumentError(fmt::format(
        "--balance is '{}', but must be h100-nvlink, pcie5 or bytes per FLOP", balance));
  }
  return bytes_per_flop;
}

// One strategy's passes over one case: a number per round.
struct Passes {
  std::vector<double> tokens_per_s;  // all ranks together
  std::vector<double> wait_fraction;
  std::vector<double> gather_bytes_per_s;
  std::vector<double> flops_per_s;  // of a rank
  std::vector<double> cpu_fraction;
};

struct Case {
  std::string name;
  std::vector<std::string> files;  // [rank]
  std::vector<int64_t> rank_tokens;
  double mean_context = 0;
  std::map<std::string, Passes> passes = {};
};

class Tunnel {
 public:
  explicit Tunnel(TunnelOptions options) : options_(std::move(options)) {}

  absl::Status Run() {
    ZP_RETURN_IF_ERROR(SetUp());
    std::vector<Case> cases;
    for (const std::string& name : options_.cases) {
      ZP_ASSIGN_OR_RETURN(Case made, MakeCase(name));
      cases.push_back(std::move(made));
    }
    for (int round = 0; round < options_.rounds; ++round) {
      for (Case& tunnel_case : cases) {
        for (const std::string& strategy : options_.strategies) {
          ZP_RETURN_IF_ERROR(RunOnce(strategy, tunnel_case));
        }
      }
    }
    for (const Case& tunnel_case : cases) {
      Print(ToJson(tunnel_case));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status SetUp() {
    ZP_ASSIGN_OR_RETURN(const spec::ModelSpec shape, spec::FindModelShape(options_.shape));
    spec_ = spec::WithLayerCount(shape, options_.layers);
    spec_.vocab_count = kVocabulary;
    ZP_ASSIGN_OR_RETURN(bytes_per_flop_, BytesPerFlop(options_.balance));
    base::ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));
    ZP_ASSIGN_OR_RETURN(
        const std::string packed,
        PackedBenchDirectory(options_.shape + "-tunnel", spec_, options_.work_directory, pool));
    std::string pattern = (fs::temp_directory_path() / "zeroprefill_tunnel_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) {
      return absl::InternalError(fmt::format("{}: cannot be made", pattern));
    }
    batch_directory_ = pattern;
    ZP_ASSIGN_OR_RETURN(links_, TunnelLinks::Create(options_.ranks));
    ZP_RETURN_IF_ERROR(StartRanks(packed));
    ZP_RETURN_IF_ERROR(ConnectMesh());
    return ShapeLinks();
  }

  absl::Status StartRanks(const std::string& packed) {
    const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      std::vector<std::string> command = links_->CommandPrefix(rank);
      for (const std::string& word : {std::string("/proc/self/exe"),
                                      std::string("bench"),
                                      std::string("tunnel-rank"),
                                      std::string("--packed"),
                                      packed,
                                      std::string("--host"),
                                      std::to_string(rank),
                                      std::string("--hosts"),
                                      std::to_string(options_.ranks),
                                      std::string("--addresses"),
                                      Addresses(),
                                      std::string("--cpus"),
                                      std::to_string(rank % cores)}) {
        command.push_back(word == "/proc/self/exe" ? fs::read_symlink(word).string() : word);
      }
      ZP_ASSIGN_OR_RETURN(ranks_.emplace_back(), ChildProcess::Start(command));
      if (options_.ranks > cores) {
        ZP_ASSIGN_OR_RETURN(
            quotas_.emplace_back(),
            CpuQuota::Limit(ranks_.back()->pid(), static_cast<double>(cores) / options_.ranks));
      }
    }
    std::vector<double> peaks;
    for (const auto& rank : ranks_) {
      ZP_ASSIGN_OR_RETURN(const json::object started, AnswerOf(*rank));
      advertisements_.emplace_back(started.at("advertisement").as_string());
      peaks.push_back(started.at("peak_flops_per_s").to_number<double>());
    }
    peak_flops_per_s_ = Median(peaks);
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      for (int32_t other = 0; other < options_.ranks; ++other) {
        if (other != rank) {
          ZP_RETURN_IF_ERROR(
              Tell(rank, fmt::format("connect {} {}", other, advertisements_[other])).status());
        }
      }
    }
    return absl::OkStatus();
  }

  std::string Addresses() const {
    std::vector<std::string> addresses;
    addresses.reserve(options_.ranks);
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      addresses.push_back(links_->address(rank));
    }
    return fmt::format("{}", fmt::join(addresses, ","));
  }

  // Said to all before any answers: they meet.
  absl::Status ConnectMesh() {
    for (const auto& rank : ranks_) {
      ZP_RETURN_IF_ERROR(rank->WriteLine("mesh"));
    }
    for (const auto& rank : ranks_) {
      ZP_RETURN_IF_ERROR(AnswerOf(*rank).status());
    }
    return absl::OkStatus();
  }

  absl::Status ShapeLinks() {
    ZP_RETURN_IF_ERROR(links_->Shape(peak_flops_per_s_ * bytes_per_flop_));
    ZP_ASSIGN_OR_RETURN(const json::object link,
                        Tell(0, fmt::format("link {}", advertisements_[1])));
    link_bytes_per_s_ = link.at("link_bytes_per_s").to_number<double>();
    return absl::OkStatus();
  }

  absl::StatusOr<json::object> AnswerOf(ChildProcess& rank) {
    ZP_ASSIGN_OR_RETURN(const std::string line, rank.ReadLine(kAnswerTimeout));
    json::object answer = json::parse(line).as_object();
    if (const json::value* error = answer.if_contains("error"); error != nullptr) {
      return absl::InternalError(std::string(error->as_string()));
    }
    return answer;
  }

  absl::StatusOr<json::object> Tell(int32_t rank, const std::string& command) {
    ZP_RETURN_IF_ERROR(ranks_[rank]->WriteLine(command));
    return AnswerOf(*ranks_[rank]);
  }

  // --- Batches ---

  double MissingBytes() const {
    const int32_t kept = (spec_.expert_count + options_.ranks - 1) / options_.ranks;
    return 2.0 * static_cast<double>(spec::ExpertParameters(spec_)) * (spec_.expert_count - kept);
  }

  // T* with the link as measured and the kernels at 80 % of their peak.
  double ExpectedSaturation(double context) const {
    return spec::SaturationTokens(MissingBytes() / link_bytes_per_s_,
                                  0.8 * peak_flops_per_s_,
                                  spec::LayerFlopsPerToken(spec_, context));
  }

  // "256": prompts of 256 tokens; "uneven": lengths from 16 to 8,192, log-uniform, and ranks with
  // whatever came to them.
  absl::StatusOr<Case> MakeCase(const std::string& name) const {
    Case made{.name = name, .files = {}, .rank_tokens = {}};
    int64_t prompt_tokens = 0;
    const bool is_uneven = name == "uneven";
    if (!is_uneven && (!absl::SimpleAtoi(name, &prompt_tokens) || prompt_tokens < 1 ||
                       prompt_tokens > spec_.max_position_count)) {
      return absl::InvalidArgumentError(
          fmt::format("case '{}' is neither a number of tokens nor 'uneven'", name));
    }
    made.mean_context = is_uneven ? 1024 : static_cast<double>(prompt_tokens) / 2;
    const auto tokens = options_.tokens > 0
                            ? options_.tokens
                            : static_cast<int64_t>(
                                  std::ceil(options_.load * ExpectedSaturation(made.mean_context)));
    std::mt19937_64 random(1);
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      const std::string path = fmt::format("{}/{}_{}.jsonl", batch_directory_, name, rank);
      std::ofstream file(path);
      int64_t written = 0;
      while (written < tokens) {
        const int64_t length =
            is_uneven ? static_cast<int64_t>(
                            std::exp2(std::uniform_real_distribution<double>(4, 13)(random)))
                      : prompt_tokens;
        json::array prompt;
        for (int64_t i = 0; i < length; ++i) {
          prompt.push_back(static_cast<int64_t>(random() % spec_.vocab_count));
        }
        file << json::serialize(prompt) << "\n";
        written += length;
      }
      made.files.push_back(path);
      made.rank_tokens.push_back(written);
    }
    return made;
  }

  // --- Passes ---

  absl::Status RunOnce(const std::string& strategy, Case& tunnel_case) {
    // What was fetched while nothing ran is not to count: gather runs once before.
    const int warm_passes = strategy == "gather" ? 1 : 0;
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      ZP_RETURN_IF_ERROR(ranks_[rank]->WriteLine(
          fmt::format("run {} {} {}", strategy, warm_passes, tunnel_case.files[rank])));
    }
    double tokens_per_s = 0;
    double wait = 0;
    double seconds = 0;
    double bytes = 0;
    double gather_seconds = 0;
    double flops = 0;
    double cpu = 0;
    for (const auto& rank : ranks_) {
      ZP_ASSIGN_OR_RETURN(const json::object pass, AnswerOf(*rank));
      const auto number = [&](const char* key) { return pass.at(key).to_number<double>(); };
      tokens_per_s += number("tokens") / number("seconds");
      wait += number("wait_seconds");
      seconds += number("seconds");
      bytes += number("gathered_bytes");
      gather_seconds += number("gather_seconds");
      flops += number("flops");
      cpu += number("cpu_seconds");
    }
    Passes& passes = tunnel_case.passes[strategy];
    passes.tokens_per_s.push_back(tokens_per_s);
    passes.wait_fraction.push_back(wait / seconds);
    passes.gather_bytes_per_s.push_back(gather_seconds > 0 ? bytes / gather_seconds : 0);
    passes.flops_per_s.push_back(flops / seconds);
    passes.cpu_fraction.push_back(cpu / seconds);
    return absl::OkStatus();
  }

  // --- Results ---

  // Copies of a token that travel to other ranks, experts chosen evenly: every other rank that
  // holds at least one of the k.
  double CopiesPerToken() const {
    const double others = options_.ranks - 1;
    const double share = 1.0 / options_.ranks;
    return others * (1 - std::pow(1 - share, spec_.experts_per_token));
  }

  // What dispatch costs over gather by arithmetic: docs/physics.md, windtunnel: 1 + bytes_per_token
  // * (F / B) * u / flops_per_token, bf16 there and back.
  double IdealRatio(double achieved_flops_per_s, double context) const {
    const double bytes_per_token = 2 * 2.0 * spec_.model_dim * CopiesPerToken();
    return 1 + bytes_per_token / link_bytes_per_s_ * achieved_flops_per_s /
                   spec::LayerFlopsPerToken(spec_, context);
  }

  static json::object RangeOf(const std::vector<double>& over, const std::vector<double>& under) {
    std::vector<double> ratios;
    for (size_t round = 0; round < over.size(); ++round) {
      ratios.push_back(over[round] / under[round]);
    }
    const auto [low, high] = std::ranges::minmax(ratios);
    return {{"median", Median(ratios)}, {"low", low}, {"high", high}};
  }

  json::object ToJson(const Case& tunnel_case) const {
    json::object line = {{"bench", "tunnel"},
                         {"ranks", options_.ranks},
                         {"case", tunnel_case.name},
                         {"shape", options_.shape},
                         {"layers", options_.layers},
                         {"balance", options_.balance},
                         {"cpu_quota", !quotas_.empty()},
                         {"rank_tokens", json::value_from(tunnel_case.rank_tokens)},
                         {"peak_flops_per_s", peak_flops_per_s_},
                         {"link_bytes_per_s", link_bytes_per_s_},
                         {"rounds", options_.rounds}};
    const auto passes = [&](const char* strategy) -> const Passes* {
      const auto found = tunnel_case.passes.find(strategy);
      return found == tunnel_case.passes.end() ? nullptr : &found->second;
    };
    const Passes* gather = passes("gather");
    const Passes* resident = passes("resident");
    const Passes* dispatch = passes("dispatch");
    for (const auto& [strategy, strategy_passes] : tunnel_case.passes) {
      line[strategy + "_tokens_per_s"] = Median(strategy_passes.tokens_per_s);
      line[strategy + "_wait_fraction"] = Median(strategy_passes.wait_fraction);
      line[strategy + "_mfu"] = Median(strategy_passes.flops_per_s) / peak_flops_per_s_;
      line[strategy + "_cpu_fraction"] = Median(strategy_passes.cpu_fraction);
    }
    if (gather != nullptr) {
      line["exposed_wait_fraction"] = Median(gather->wait_fraction);
    }
    if (gather != nullptr && resident != nullptr) {
      const double achieved = Median(resident->flops_per_s);
      const double saturation =
          spec::SaturationTokens(MissingBytes() / link_bytes_per_s_,
                                 achieved,
                                 spec::LayerFlopsPerToken(spec_, tunnel_case.mean_context));
      line["saturation_tokens"] = saturation;
      line["above_saturation"] =
          static_cast<double>(*std::ranges::min_element(tunnel_case.rank_tokens)) >= saturation;
      line["of_resident"] = RangeOf(gather->tokens_per_s, resident->tokens_per_s);
      line["ideal_ratio"] = IdealRatio(achieved, tunnel_case.mean_context);
    }
    if (gather != nullptr && dispatch != nullptr) {
      line["ratio"] = RangeOf(gather->tokens_per_s, dispatch->tokens_per_s);
    }
    return line;
  }

  void Print(const json::object& line) const {
    if (options_.json) {
      fmt::print("{}\n", json::serialize(line));
    } else {
      fmt::print("case {}, {} ranks:\n", std::string(line.at("case").as_string()), options_.ranks);
      for (const auto& [key, value] : line) {
        fmt::print("  {:<24} {}\n", std::string(key), json::serialize(value));
      }
    }
    std::fflush(stdout);
  }

  const TunnelOptions options_;
  spec::ModelSpec spec_;
  double bytes_per_flop_ = 0;
  double peak_flops_per_s_ = 0;  // of a rank
  double link_bytes_per_s_ = 0;
  std::string batch_directory_;
  std::unique_ptr<TunnelLinks> links_;
  std::vector<std::string> advertisements_;  // [rank], hex
  std::vector<std::unique_ptr<ChildProcess>> ranks_;
  std::vector<std::unique_ptr<CpuQuota>> quotas_;
};

absl::Status RunTunnel(const TunnelOptions& options) {
  if (options.ranks < 2 || options.ranks > 64) {
    return absl::InvalidArgumentError(
        fmt::format("--ranks is {}, but must be from 2 to 64", options.ranks));
  }
  // A host's budget is its share and its window: with as many slots as layers that is everything.
  if (options.layers <= engine::HostModelOptions{}.window_slot_count) {
    return absl::InvalidArgumentError(
        fmt::format("--layers is {}, but must be more than the {} slots of the window",
                    options.layers,
                    engine::HostModelOptions{}.window_slot_count));
  }
  return Tunnel(options).Run();
}

}  // namespace

void AddBenchTunnelCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("tunnel",
                                           "Gathering weights against dispatching tokens, on hosts "
                                           "in network namespaces whose links are "
                                           "shaped to the balance of a GPU machine (needs root)");
  const auto options = std::make_shared<TunnelOptions>();
  command->add_option("--ranks", options->ranks, "Hosts, one rank each")->capture_default_str();
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Layers to keep")->capture_default_str();
  command
      ->add_option("--balance",
                   options->balance,
                   "h100-nvlink, pcie5, or the link's bytes/s per FLOP/s of a rank")
      ->capture_default_str();
  command
      ->add_option("--cases",
                   options->cases,
                   "Tokens per prompt, nothing shared, or 'uneven': lengths from 16 to 8,192")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Of a rank's pass; 0: --load times T*")
      ->capture_default_str();
  command->add_option("--load", options->load, "Tokens of a pass, in units of T*")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--strategies", options->strategies, "Of resident, gather and dispatch")
      ->delimiter(',')
      ->check(CLI::IsMember({"resident", "gather", "dispatch"}))
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "Passes per case and strategy, interleaved")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--work",
                      options->work_directory,
                      "Where the packed weights are made and kept (default: /var/tmp)");
  command->add_flag("--json", options->json, "One JSON line per case");
  command->callback([options] { ExitOnError(RunTunnel(*options)); });
}

}  // namespace zp::apps
