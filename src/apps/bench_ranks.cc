#include "apps/bench_ranks.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "base/status.h"
#include "boost/json.hpp"
#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "fmt/format.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct RanksOptions {
  std::string shape = "qwen3-30b-a3b";
  int32_t layers = 3;
  int32_t ranks = 2;
  int64_t tokens = 4096;
  int64_t prompt_tokens = 256;
  int rounds = 5;
  bool json = false;
};

using Batch = std::vector<protocol::Work>;

// What the ranks are fed at once, in units of `tokens`, and how fast each was in each round.
struct Feed {
  std::string name;
  std::vector<int> units = {};                         // [rank]
  std::vector<std::vector<double>> tokens_per_s = {};  // [round][rank]; 0: fed nothing
};

class RanksBench {
 public:
  explicit RanksBench(RanksOptions options) : options_(std::move(options)) {}

  absl::Status Run() {
    ZP_RETURN_IF_ERROR(StartRanks());
    std::vector<Feed> feeds = Feeds();
    for (int round = 0; round < options_.rounds; ++round) {
      for (Feed& feed : feeds) {
        ZP_RETURN_IF_ERROR(RunFeed(feed, round));
      }
    }
    Print(feeds);
    return absl::OkStatus();
  }

 private:
  absl::Status StartRanks() {
    const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
    if (options_.ranks > cores) {
      return absl::InvalidArgumentError(
          fmt::format("--ranks is {}, but there are {} cores", options_.ranks, cores));
    }
    ZP_ASSIGN_OR_RETURN(const spec::ModelSpec shape, spec::FindModelShape(options_.shape));
    ZP_ASSIGN_OR_RETURN(
        const std::shared_ptr<const engine::HostModel> host_model,
        engine::HostModel::Load(
            *checkpoint::CreateSynthetic(spec::WithLayerCount(shape, options_.layers), 1),
            {.rank_count = options_.ranks}));
    for (int32_t rank = 0; rank < options_.ranks; ++rank) {
      std::vector<int> cpus;
      for (int cpu = cores * rank / options_.ranks; cpu < cores * (rank + 1) / options_.ranks;
           ++cpu) {
        cpus.push_back(cpu);
      }
      ZP_ASSIGN_OR_RETURN(
          engines_.emplace_back(),
          engine::Engine::Create(
              host_model,
              {.rank = rank, .thread_count = static_cast<int>(cpus.size()), .cpus = cpus}));
    }
    return absl::OkStatus();
  }

  // The first rank is always fed the same; the others nothing, the same, and twice that.
  std::vector<Feed> Feeds() const {
    std::vector<Feed> feeds = {{.name = "alone"}, {.name = "even"}, {.name = "double"}};
    for (int units = 0; units < 3; ++units) {
      feeds[units].units.assign(options_.ranks, units);
      feeds[units].units.front() = 1;
    }
    return feeds;
  }

  absl::Status RunFeed(Feed& feed, int round) {
    std::vector<double>& tokens_per_s =
        feed.tokens_per_s.emplace_back(std::vector<double>(options_.ranks));
    std::vector<absl::Status> statuses(options_.ranks);
    {
      std::vector<std::jthread> threads;
      for (int32_t rank = 0; rank < options_.ranks; ++rank) {
        const int64_t tokens = feed.units[rank] * options_.tokens;
        if (tokens > 0) {
          threads.emplace_back([&, rank, tokens] {
            statuses[rank] = RunPass(rank, tokens, round, tokens_per_s[rank]);
          });
        }
      }
    }
    for (const absl::Status& status : statuses) {
      ZP_RETURN_IF_ERROR(status);
    }
    return absl::OkStatus();
  }

  absl::Status RunPass(int32_t rank, int64_t tokens, int round, double& tokens_per_s) {
    const Batch batch = RandomPrompts(tokens,
                                      std::min(tokens, options_.prompt_tokens),
                                      engines_[rank]->spec().vocab_count,
                                      static_cast<uint64_t>(round) * options_.ranks + rank);
    const engine::BatchResult result = engines_[rank]->Run(PointersTo(batch));
    for (const auto& work : result.works) {
      ZP_RETURN_IF_ERROR(work.status());
    }
    tokens_per_s = static_cast<double>(tokens) / result.report.seconds;
    return absl::OkStatus();
  }

  // In each round, what the first `ranks` ranks did together.
  static std::vector<double> Sums(const Feed& feed, int32_t ranks) {
    std::vector<double> sums;
    for (const std::vector<double>& round : feed.tokens_per_s) {
      sums.push_back(std::accumulate(round.begin(), round.begin() + ranks, 0.0));
    }
    return sums;
  }

  void Print(const std::vector<Feed>& feeds) const {
    const std::vector<double> alone = Sums(feeds[0], 1);
    const std::vector<double> even = Sums(feeds[1], 1);
    const json::object line = {{"bench", "ranks"},
                               {"shape", options_.shape},
                               {"layers", options_.layers},
                               {"ranks", options_.ranks},
                               {"tokens", options_.tokens},
                               {"prompt_tokens", options_.prompt_tokens},
                               {"rounds", options_.rounds},
                               {"alone_tokens_per_s", Median(alone)},
                               {"scaling", RatioOf(Sums(feeds[1], options_.ranks), alone)},
                               {"others_even", RatioOf(even, alone)},
                               {"others_double", RatioOf(Sums(feeds[2], 1), even)}};
    if (options_.json) {
      fmt::print("{}\n", json::serialize(line));
      return;
    }
    for (const auto& [key, value] : line) {
      fmt::print("  {:<20} {}\n", std::string(key), json::serialize(value));
    }
  }

  const RanksOptions options_;
  std::vector<std::unique_ptr<engine::Engine>> engines_;
};

}  // namespace

void AddBenchRanksCommand(CLI::App& bench) {
  CLI::App* command =
      bench.add_subcommand("ranks",
                           "Ranks of one process: together over alone (scaling), and the first "
                           "rank's speed while the others have as much or twice as much to do");
  const auto options = std::make_shared<RanksOptions>();
  command->add_option("--shape", options->shape, "Named model shape; weights are random")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Layers to keep")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--ranks", options->ranks, "Each on its own cores")
      ->check(CLI::Range(2, 64))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Of a rank's pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--prompt-tokens", options->prompt_tokens, "Tokens per prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "Passes of each case, interleaved")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line");
  command->callback([options] { ExitOnError(RanksBench(*options).Run()); });
}

}  // namespace zp::apps
