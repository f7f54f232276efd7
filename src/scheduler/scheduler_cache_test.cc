// With a real engine and its prefix cache: what is computed ahead is found by the answer, which
// stays the same to the bit.
#include <atomic>
#include <future>
#include <memory>
#include <random>

#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "engine/odd_spec.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler.h"

namespace zp::scheduler {
namespace {

constexpr uint64_t kBlockKey = 77;

std::unique_ptr<engine::Engine> MakeEngine(const std::shared_ptr<const engine::HostModel>& host,
                                           int64_t cache_bytes) {
  auto engine =
      engine::Engine::Create(host, {.prefix_cache_bytes = cache_bytes, .block_key = kBlockKey});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

// Several labels after one long prompt.
protocol::Work LongWork() {
  std::mt19937 random(4);
  std::vector<protocol::TokenId> prompt(600);
  for (protocol::TokenId& token : prompt) {
    token = static_cast<protocol::TokenId>(random() % 301);
  }
  protocol::Work work{.request_id = "long"};
  for (protocol::TokenId label = 1; label <= 3; ++label) {
    protocol::Sequence& sequence = work.sequences.emplace_back();
    sequence.tokens = prompt;
    sequence.tokens.push_back(label);
    sequence.rows = {{.position = 599, .columns = {label}}, {.position = 600, .columns = {7, 9}}};
  }
  return work;
}

TEST(SchedulerWithCache, FindsWhatItComputedAhead) {
  const auto host = engine::HostModel::Load(
      *checkpoint::CreateSynthetic(engine::OddSpec({false, true, true}), 7), {.thread_count = 2});
  ASSERT_TRUE(host.ok()) << host.status();
  const protocol::Work work = LongWork();
  const protocol::Work* const works[] = {&work};
  const engine::BatchResult expected = MakeEngine(*host, 0)->Run(works);
  ASSERT_TRUE(expected.works[0].ok()) << expected.works[0].status();

  const auto engine = MakeEngine(*host, 64 << 20);
  std::atomic<int> pass_count = 0;
  Scheduler scheduler(*engine,
                      {.block_key = kBlockKey,
                       .cache_tokens = 10'000,
                       .ahead_tokens = 128,
                       .on_report = [&](const protocol::RankReport&) { ++pass_count; }});
  for (const bool is_held : {false, true}) {
    const int passes_before = pass_count;
    std::promise<absl::StatusOr<protocol::WorkResult>> promise;
    ASSERT_TRUE(scheduler
                    .Submit(work,
                            {},
                            [&](absl::StatusOr<protocol::WorkResult> answer) {
                              promise.set_value(std::move(answer));
                            })
                    .ok());
    const absl::StatusOr<protocol::WorkResult> answer = promise.get_future().get();
    ASSERT_TRUE(answer.ok()) << answer.status();
    ASSERT_EQ(answer->sequences.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      for (size_t row = 0; row < 2; ++row) {
        EXPECT_EQ(answer->sequences[i].rows[row].column_logits,
                  expected.works[0]->sequences[i].rows[row].column_logits);
      }
    }
    const int64_t distinct_tokens = expected.report.computed_tokens;
    const protocol::Usage& usage = answer->usage;
    EXPECT_EQ(usage.prompt_tokens, work.token_count());
    if (is_held) {
      EXPECT_EQ(pass_count - passes_before, 1);
      EXPECT_LT(usage.computed_tokens, 32);
    } else {
      EXPECT_GE(pass_count - passes_before, 4);
      EXPECT_EQ(usage.computed_tokens, distinct_tokens);
    }
  }
}

}  // namespace
}  // namespace zp::scheduler
