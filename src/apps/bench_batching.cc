#include "apps/bench_batching.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "scheduler/batch_queue.h"
#include "scheduler/work_parts.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct BatchingOptions {
  std::vector<int64_t> depths = {1'000, 100'000};
  int32_t prompt_tokens = 256;
  int32_t shared_tokens = 128;
  int32_t family_count = 50;
  int64_t max_batch_tokens = 16'384;
  double ageing = scheduler::BatchQueueOptions{}.ageing;
  int32_t works = 20'000;
  bool json = false;
};

// A queue that is kept at one depth: as many works come as leave with each batch.
class BatchingBench {
 public:
  explicit BatchingBench(const BatchingOptions& options)
      : options_(options), spec_(*spec::FindModelShape("qwen3-30b-a3b")) {}

  void Run() {
    for (const int64_t depth : options_.depths) {
      RunCase(depth);
    }
  }

 private:
  scheduler::WaitingWork MakeWork() {
    protocol::Work work;
    std::vector<protocol::TokenId>& tokens = work.sequences.emplace_back().tokens;
    const auto family = static_cast<protocol::TokenId>(random_() % options_.family_count);
    tokens.assign(std::min(options_.shared_tokens, options_.prompt_tokens), family);
    while (std::ssize(tokens) < options_.prompt_tokens) {
      tokens.push_back(static_cast<protocol::TokenId>(random_() >> 1));
    }
    const Clock::time_point begin = Clock::now();
    scheduler::WorkPlan plan =
        scheduler::PlanParts(spec_, hasher_, work, {.max_batch_tokens = options_.max_batch_tokens});
    plan_seconds_ += Clock::now() - begin;
    return {.id = next_id_++, .parts = std::move(plan.parts), .arrival = begin};
  }

  void RunCase(int64_t depth) {
    scheduler::BatchQueue queue(
        {.max_batch_tokens = options_.max_batch_tokens, .ageing = options_.ageing});
    for (int64_t i = 0; i < depth; ++i) {
      queue.Add(MakeWork());
    }
    plan_seconds_ = {};
    std::chrono::duration<double> add_seconds{};
    std::chrono::duration<double> take_seconds{};
    int64_t taken = 0;
    int64_t batches = 0;
    int64_t distinct_tokens = 0;
    while (taken < options_.works) {
      const Clock::time_point begin = Clock::now();
      const scheduler::Batch batch = queue.Take(begin);
      take_seconds += Clock::now() - begin;
      taken += std::ssize(batch.works);
      distinct_tokens += batch.distinct_tokens;
      ++batches;
      for (size_t i = 0; i < batch.works.size(); ++i) {
        scheduler::WaitingWork work = MakeWork();
        const Clock::time_point add_begin = Clock::now();
        queue.Add(std::move(work));
        add_seconds += Clock::now() - add_begin;
      }
    }
    const auto per_work_us = [&](std::chrono::duration<double> seconds) {
      return 1e6 * seconds.count() / static_cast<double>(taken);
    };
    PrintCase({{"bench", "batching"},
               {"depth", depth},
               {"prompt_tokens", options_.prompt_tokens},
               {"works_per_batch", static_cast<double>(taken) / static_cast<double>(batches)},
               {"asked_per_distinct",
                static_cast<double>(taken * options_.prompt_tokens) /
                    static_cast<double>(distinct_tokens)},
               {"plan_us_per_work", per_work_us(plan_seconds_)},
               {"add_us_per_work", per_work_us(add_seconds)},
               {"take_us_per_work", per_work_us(take_seconds)},
               {"take_us_per_batch", 1e6 * take_seconds.count() / static_cast<double>(batches)}},
              options_.json);
  }

  const BatchingOptions options_;
  const spec::ModelSpec spec_;
  const protocol::BlockHasher hasher_{7};
  std::mt19937 random_{1};
  uint64_t next_id_ = 1;
  std::chrono::duration<double> plan_seconds_{};
};

}  // namespace

void AddBenchBatchingCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "batching", "Microseconds that a work costs the scheduler: hashing, queueing, forming");
  const auto options = std::make_shared<BatchingOptions>();
  command->add_option("--depths", options->depths, "Works that wait, one case each")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--prompt-tokens", options->prompt_tokens, "Of each work")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--shared-tokens", options->shared_tokens, "Of those, its family's")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--families", options->family_count, "Prefixes that works begin with")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--max-batch-tokens", options->max_batch_tokens, "As in `serve`")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--ageing", options->ageing, "Own costs that a work waits behind later ones")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--works", options->works, "That are timed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line per case");
  command->callback([options] { BatchingBench(*options).Run(); });
}

}  // namespace zp::apps
