#include "apps/bench_tunnel.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "apps/bench_packed.h"
#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "apps/request_lines.h"
#include "apps/scratch_directory.h"
#include "apps/tunnel_arithmetic.h"
#include "apps/tunnel_cases.h"
#include "apps/tunnel_hosts.h"
#include "apps/tunnel_links.h"
#include "apps/tunnel_report.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "boost/json.hpp"
#include "engine/host_model.h"
#include "fmt/format.h"
#include "spec/flops.h"
#include "spec/model_shapes.h"
#include "spec/saturation.h"
#include "text/tokenizer.h"

namespace zp::apps {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct TunnelOptions {
  TunnelPlacement placement;
  std::string shape = "qwen3-30b-a3b";
  int32_t layers = 3;
  int32_t model_dim = 0;  // 0: the shape's
  std::string balance = "h100-nvlink";
  std::string links = "shaped";
  std::string dtype = "bf16";
  std::vector<std::string> cases = {"256", "4096"};
  std::string tokenizer;
  int64_t tokens = 0;  // of a rank's pass; 0: by `load`
  double load = 1.3;   // times T*
  std::vector<std::string> strategies = {"resident", "gather", "dispatch"};
  int rounds = 5;
  std::string work_directory;
  bool json = false;
};

// One label is asked of each row: a larger vocabulary is memory and nothing else.
constexpr int32_t kVocabulary = 8192;
// Of their peak, what the kernels are taken to achieve before that has been measured.
constexpr double kExpectedMfu = 0.8;

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

// How long the rest will take, from what has been done.
class Estimate {
 public:
  void Add(double flops) { left_flops_ += flops; }
  void Done(double flops, double seconds) {
    left_flops_ -= flops;
    done_flops_ += flops;
    done_seconds_ += seconds;
  }
  // REQUIRES: something was done.
  double SecondsLeft() const { return left_flops_ * done_seconds_ / done_flops_; }

 private:
  double left_flops_ = 0;
  double done_flops_ = 0;
  double done_seconds_ = 0;
};

class Tunnel {
 public:
  explicit Tunnel(TunnelOptions options) : options_(std::move(options)) {}

  absl::Status Run() {
    ZP_RETURN_IF_ERROR(SetUp());
    ZP_RETURN_IF_ERROR(MakeCases());
    // The first round makes kernels and touches memory; it is not counted.
    for (int round = 0; round <= options_.rounds; ++round) {
      for (TunnelCase& tunnel_case : cases_) {
        for (const std::string& strategy : options_.strategies) {
          remaining_.Add(RoundFlops(strategy, tunnel_case));
        }
      }
    }
    for (int round = 0; round <= options_.rounds; ++round) {
      for (TunnelCase& tunnel_case : cases_) {
        for (const std::string& strategy : options_.strategies) {
          ZP_RETURN_IF_ERROR(RunOnce(strategy, round, tunnel_case));
        }
      }
    }
    for (const TunnelCase& tunnel_case : cases_) {
      Print(ReportCase(setting_, tunnel_case, FindCase(tunnel_case.work.even_case)));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status SetUp() {
    ZP_ASSIGN_OR_RETURN(const spec::ModelSpec shape, spec::FindModelShape(options_.shape));
    spec_ = spec::WithLayerCount(shape, options_.layers);
    spec_.vocab_count = kVocabulary;
    std::string name = options_.shape + "-tunnel";
    if (options_.model_dim > 0) {
      spec_.model_dim = options_.model_dim;
      name += fmt::format("-{}", options_.model_dim);
    }
    ZP_ASSIGN_OR_RETURN(const LinkKind links, ParseLinkKind(options_.links));
    ZP_ASSIGN_OR_RETURN(setting_.dtype, ParseDType(options_.dtype));
    ZP_ASSIGN_OR_RETURN(setting_.bytes_per_flop,
                        BytesPerFlop(options_.balance, ElementBytes(setting_)));
    ZP_RETURN_IF_ERROR(CheckMemory(setting_.bytes_per_flop));
    base::ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));
    ZP_ASSIGN_OR_RETURN(
        const std::string packed,
        PackedBenchDirectory(name, spec_, options_.work_directory, pool, {}, setting_.dtype));
    ZP_ASSIGN_OR_RETURN(batch_directory_, ScratchDirectory::Create("tunnel"));
    ZP_ASSIGN_OR_RETURN(hosts_,
                        TunnelHosts::Start({.placement = options_.placement,
                                            .packed_directory = packed,
                                            .spec = spec_,
                                            .dtype = setting_.dtype,
                                            .links = links,
                                            .has_held_copy = NeedsHeldCopy(),
                                            .bytes_per_flop = setting_.bytes_per_flop}));
    setting_.shape = options_.shape;
    setting_.balance = options_.balance;
    setting_.spec = spec_;
    setting_.placement = options_.placement;
    setting_.rounds = options_.rounds;
    setting_.load = options_.tokens > 0 ? 0 : options_.load;
    setting_.cores_per_rank = hosts_->cores_per_rank();
    setting_.peak_flops_per_s = hosts_->peak_flops_per_s();
    setting_.links = NameOf(links);
    setting_.nominal_link_bytes_per_s = hosts_->nominal_link_bytes_per_s();
    setting_.link_bytes_per_s = hosts_->link_bytes_per_s();
    setting_.link_cpu_s_per_gb = hosts_->link_cpu_s_per_gb();
    setting_.huge_page_fraction = hosts_->huge_page_fraction();
    Tell(fmt::format(
        "{:.2f} of a core a rank ({}), {:.1f} GFLOP/s of {}, {} links of {:.1f} MB/s ({:.1f} "
        "measured, at {:.3f} CPU s per GB)",
        setting_.cores_per_rank,
        setting_.cores_per_rank < 1 ? "an enforced quota, alike for all" : "its own, no quota",
        setting_.peak_flops_per_s / 1e9,
        options_.dtype,
        setting_.links,
        setting_.nominal_link_bytes_per_s / 1e6,
        setting_.link_bytes_per_s / 1e6,
        setting_.link_cpu_s_per_gb));
    return absl::OkStatus();
  }

  bool NeedsHeldCopy() const {
    return Contains(options_.strategies, "resident") || Contains(options_.strategies, "alone");
  }

  // Refuses what would end with the kernel ending a process. T* depends on the balance alone, so
  // the size of a pass is known before anything is measured.
  absl::Status CheckMemory(double bytes_per_flop) const {
    const double context = 128;
    const double saturation = kExpectedMfu *
                              MissingBytes(spec_, ElementBytes(setting_), options_.placement) /
                              bytes_per_flop / spec::LayerFlopsPerToken(spec_, context);
    auto pass_tokens = options_.tokens > 0
                           ? options_.tokens
                           : static_cast<int64_t>(std::ceil(options_.load * saturation));
    for (const std::string& name : options_.cases) {
      int64_t prompt_tokens = 0;
      pass_tokens =
          std::max(pass_tokens, absl::SimpleAtoi(name, &prompt_tokens) ? prompt_tokens : 0);
    }
    const TunnelUse use = {
        .placement = options_.placement,
        .element_bytes = ElementBytes(setting_),
        .pass_tokens = pass_tokens,
        .window_slots = engine::HostModelOptions{}.window_slot_count,
        .gathers = Contains(options_.strategies, "gather"),
        .dispatches = Contains(options_.strategies, "dispatch"),
        .dispatches_overlapped = Contains(options_.strategies, "dispatch-overlap"),
        .has_resident = NeedsHeldCopy()};
    const TunnelMemory memory = MemoryFor(spec_, use);
    const int64_t needed =
        memory.total_bytes(options_.placement.ranks) +
        (Contains(options_.cases, "double") ? memory.rank_bytes / 2 : 0) +
        (Contains(options_.strategies, "loaded") ? options_.placement.ranks * AllExpertBytes() : 0);
    const int64_t available = engine::AvailableMemoryBytes();
    Tell(fmt::format("{} tokens a pass, {} a rank and {} for all: {} of {} available",
                     pass_tokens,
                     base::FormatBytes(memory.rank_bytes),
                     base::FormatBytes(memory.shared_bytes),
                     base::FormatBytes(needed),
                     base::FormatBytes(available)));
    // The estimate may be off by a tenth.
    if (needed + needed / 10 > available) {
      return absl::ResourceExhaustedError(
          fmt::format("{} ranks would take {} and a tenth more to be safe; {} is available. Half "
                      "the --model-dim (now {}) "
                      "takes half and keeps T* and the ratios, but for attention's share",
                      options_.placement.ranks,
                      base::FormatBytes(needed),
                      base::FormatBytes(available),
                      spec_.model_dim));
    }
    return absl::OkStatus();
  }

  int64_t AllExpertBytes() const {
    return ElementBytes(setting_) * spec_.layer_count * spec_.expert_count *
           spec::ExpertParameters(spec_);
  }

  // --- Cases ---

  int64_t PassTokens(double context) const {
    if (options_.tokens > 0) {
      return options_.tokens;
    }
    return static_cast<int64_t>(
        std::ceil(options_.load *
                  TunnelSaturation(setting_, kExpectedMfu * setting_.peak_flops_per_s, context)));
  }

  absl::Status MakeCases() {
    for (const std::string& name : options_.cases) {
      ZP_RETURN_IF_ERROR(AddCase(name));
    }
    // Those that idle and double are held against.
    for (size_t i = 0; i < cases_.size(); ++i) {
      const std::string even = cases_[i].work.even_case;
      if (!even.empty() && FindCase(even) == nullptr) {
        ZP_RETURN_IF_ERROR(AddCase(even));
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddCase(const std::string& name) {
    TunnelCase made;
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      made.name = name.substr(0, equals);
      ZP_ASSIGN_OR_RETURN(made.work, WorkOfFile(name.substr(equals + 1)));
    } else {
      made.name = name;
      // A first look tells the mean context, on which T* depends.
      ZP_ASSIGN_OR_RETURN(const TunnelWork sample,
                          MakeWork(name, spec_, options_.placement.ranks, 16384));
      ZP_ASSIGN_OR_RETURN(
          made.work,
          MakeWork(name, spec_, options_.placement.ranks, PassTokens(sample.mean_context)));
    }
    const std::string directory = fmt::format("{}/{}", batch_directory_.path(), cases_.size());
    fs::create_directory(directory);
    files_.push_back(WriteFiles(made.work, directory));
    cases_.push_back(std::move(made));
    return absl::OkStatus();
  }

  absl::StatusOr<TunnelWork> WorkOfFile(const std::string& path) {
    if (tokenizer_ == nullptr) {
      if (options_.tokenizer.empty()) {
        return absl::InvalidArgumentError("a case from a file needs --tokenizer");
      }
      ZP_ASSIGN_OR_RETURN(tokenizer_, text::Tokenizer::Load(options_.tokenizer));
    }
    std::vector<PromptGroup> groups;
    std::string last_context;
    const auto take = [&](const RequestLine& request) {
      if (groups.empty() || request.context != last_context) {
        groups.emplace_back();
        last_context = request.context;
      }
      groups.back().push_back(request.Tokens(*tokenizer_));
      return absl::OkStatus();
    };
    ZP_RETURN_IF_ERROR(ForEachRequestLine(path, take));
    ZP_ASSIGN_OR_RETURN(const TunnelWork sample,
                        DealGroups(groups, spec_, options_.placement.ranks, 4096));
    return DealGroups(groups, spec_, options_.placement.ranks, PassTokens(sample.mean_context));
  }

  // [rank]: the files of its queue, one word after the other.
  static std::vector<std::string> WriteFiles(const TunnelWork& work, const std::string& directory) {
    std::vector<std::string> words;
    for (size_t rank = 0; rank < work.queues.size(); ++rank) {
      std::string& paths = words.emplace_back();
      for (size_t pass = 0; pass < work.queues[rank].size(); ++pass) {
        const std::string path = fmt::format("{}/{}_{}.jsonl", directory, rank, pass);
        std::ofstream file(path);
        for (const Prompt& prompt : work.queues[rank][pass].prompts) {
          file << json::serialize(json::value_from(prompt)) << "\n";
        }
        paths += " " + path;
      }
    }
    return words;
  }

  const TunnelCase* FindCase(const std::string& name) const {
    const auto found = std::ranges::find(cases_, name, &TunnelCase::name);
    return name.empty() || found == cases_.end() ? nullptr : &*found;
  }

  // --- Passes ---

  // What was fetched while nothing ran is not to count. It shows only where a gather takes longer
  // than a layer: above T* the first gather would have been hidden anyway.
  int WarmPasses(const std::string& strategy, const TunnelWork& work) const {
    const double saturation =
        TunnelSaturation(setting_, kExpectedMfu * setting_.peak_flops_per_s, work.mean_context);
    const auto smallest = static_cast<double>(std::max<int64_t>(work.smallest_pass(), 1));
    return strategy == "gather" && smallest < 1.25 * saturation ? 1 : 0;
  }

  double RoundFlops(const std::string& strategy, const TunnelCase& tunnel_case) const {
    double tokens = 0;
    for (int32_t rank = 0; rank < (strategy == "alone" ? 1 : options_.placement.ranks); ++rank) {
      tokens += static_cast<double>(tunnel_case.work.rank_tokens(rank));
      if (WarmPasses(strategy, tunnel_case.work) > 0 && !tunnel_case.work.queues[rank].empty()) {
        tokens += static_cast<double>(tunnel_case.work.queues[rank][0].tokens);
      }
    }
    return tokens * spec_.layer_count *
           spec::LayerFlopsPerToken(spec_, tunnel_case.work.mean_context);
  }

  absl::Status RunOnce(const std::string& strategy, int round, TunnelCase& tunnel_case) {
    const auto begin = std::chrono::steady_clock::now();
    const auto& files = files_[&tunnel_case - cases_.data()];
    const int32_t passes = tunnel_case.work.pass_count();
    const int32_t rank_count = strategy == "alone" ? 1 : options_.placement.ranks;
    std::vector<std::string> commands;
    commands.reserve(rank_count);
    for (int32_t rank = 0; rank < rank_count; ++rank) {
      commands.push_back(fmt::format(
          "run {} {} {}{}", strategy, WarmPasses(strategy, tunnel_case.work), passes, files[rank]));
    }
    ZP_ASSIGN_OR_RETURN(const std::vector<json::object> answers, hosts_->TellEach(commands));
    std::vector<RankRun> runs;
    for (const json::object& answer : answers) {
      ZP_ASSIGN_OR_RETURN(runs.emplace_back(), RankRun::FromJson(answer));
    }
    if (round > 0) {
      tunnel_case.strategies[strategy].Record(runs, passes);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    remaining_.Done(RoundFlops(strategy, tunnel_case), seconds.count());
    StrategyRounds once;
    once.Record(runs, passes);
    Tell(fmt::format("{} of case {}, {}: {:.1f} s, {:.0f} tokens/s; about {:.1f} minutes left",
                     round == 0 ? "warm-up" : fmt::format("round {}/{}", round, options_.rounds),
                     tunnel_case.name,
                     strategy,
                     seconds.count(),
                     once.tokens_per_s[0],
                     remaining_.SecondsLeft() / 60));
    return absl::OkStatus();
  }

  static void Tell(const std::string& text) { fmt::print(stderr, "tunnel: {}\n", text); }

  void Print(const json::object& line) const {
    if (!options_.json) {
      fmt::print("case {}, {} ranks:\n",
                 std::string(line.at("case").as_string()),
                 options_.placement.ranks);
    }
    PrintCase(line, options_.json);
  }

  const TunnelOptions options_;
  spec::ModelSpec spec_;
  TunnelSetting setting_;
  ScratchDirectory batch_directory_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::unique_ptr<TunnelHosts> hosts_;
  std::vector<TunnelCase> cases_;
  std::vector<std::vector<std::string>> files_;  // [case][rank]
  Estimate remaining_;
};

absl::Status RunTunnel(const TunnelOptions& options) {
  if (options.placement.ranks < 2 || options.placement.ranks > 64) {
    return absl::InvalidArgumentError(
        fmt::format("--ranks is {}, but must be from 2 to 64", options.placement.ranks));
  }
  if (const int32_t redundancy = options.placement.redundancy;
      redundancy < 1 || redundancy >= options.placement.ranks ||
      options.placement.ranks % redundancy != 0) {
    return absl::InvalidArgumentError(
        fmt::format("--redundancy is {}, but must divide --ranks and be less than its {}",
                    redundancy,
                    options.placement.ranks));
  }
  // A host's budget is its share and its window: with as many slots as layers that is everything.
  if (options.layers <= engine::HostModelOptions{}.window_slot_count) {
    return absl::InvalidArgumentError(
        fmt::format("--layers is {}, but must be more than the {} slots of the window",
                    options.layers,
                    engine::HostModelOptions{}.window_slot_count));
  }
  // Gather and dispatch then keep the same experts on each rank.
  if (const auto shape = spec::FindModelShape(options.shape);
      shape.ok() && shape->expert_count % options.placement.ranks != 0) {
    return absl::InvalidArgumentError(
        fmt::format("--ranks is {}, but must divide the {} experts of a layer",
                    options.placement.ranks,
                    shape->expert_count));
  }
  if (options.model_dim % 64 != 0) {
    return absl::InvalidArgumentError(
        fmt::format("--model-dim is {}, but must be a multiple of 64", options.model_dim));
  }
  return Tunnel(options).Run();
}

}  // namespace

void AddBenchTunnelCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("tunnel",
                                           "Gathering weights against dispatching tokens, on hosts "
                                           "whose links are held to the balance of a GPU machine "
                                           "(shaped ones, and more hosts than cores, need root)");
  const auto options = std::make_shared<TunnelOptions>();
  command
      ->add_option("--ranks",
                   options->placement.ranks,
                   "Hosts, one rank each; more than there are cores get an equal CPU quota each")
      ->capture_default_str();
  command
      ->add_option(
          "--redundancy",
          options->placement.redundancy,
          "Copies of each expert that the hosts keep: more leave less to gather, and dispatch "
          "goes to fewer of them")
      ->capture_default_str();
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Layers to keep")->capture_default_str();
  command
      ->add_option("--model-dim",
                   options->model_dim,
                   "Instead of the shape's: less memory and time at the same T* (0: the shape's)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--balance",
                   options->balance,
                   "h100-nvlink, pcie5, or the link's bytes/s per FLOP/s of a rank, as for bf16")
      ->capture_default_str();
  command
      ->add_option("--links",
                   options->links,
                   "shaped: TCP between network namespaces, done by the ranks' own cores; shared: "
                   "memory that ranks share, each link paced by a timetable")
      ->capture_default_str();
  command
      ->add_option(
          "--dtype",
          options->dtype,
          "bf16 or f32 (where a machine has no fast bf16), of weights and activations; f32 "
          "gets links of twice the bytes")
      ->capture_default_str();
  command
      ->add_option("--cases",
                   options->cases,
                   "Tokens per prompt, nothing shared; uneven (prompts of 16 to 8192) or uneven-N "
                   "(to N); idle; double; or NAME=FILE with requests as JSON lines, also .xz")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--tokenizer", options->tokenizer, "A tokenizer.json, for cases from files");
  command->add_option("--tokens", options->tokens, "Of a rank's pass; 0: --load times T*")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--load", options->load, "Tokens of a pass, in units of T*")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--strategies",
                   options->strategies,
                   "Of resident, gather, dispatch, dispatch-overlap (in micro-batches), alone (one "
                   "resident rank while the others rest) and loaded (resident from a copy of each "
                   "rank's own)")
      ->delimiter(',')
      ->check(
          CLI::IsMember({"resident", "gather", "dispatch", "dispatch-overlap", "alone", "loaded"}))
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
