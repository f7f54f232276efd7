// With a real engine and its prefix cache: what is computed ahead is found by the answer, which
// stays the same to the bit.
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "engine/odd_spec.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler.h"

namespace zp::scheduler {
namespace {

constexpr uint64_t kBlockKey = 77;
constexpr int64_t kPlenty = 64 << 20;

// Several labels after one long prompt.
protocol::Work LongWork(uint32_t seed = 4) {
  std::mt19937 random(seed);
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

using Answer = absl::StatusOr<protocol::WorkResult>;

class SchedulerWithCache : public ::testing::Test {
 protected:
  // `cache_tokens`: what the scheduler takes the cache for; the engine's may hold less.
  void Start(engine::EngineOptions options,
             int64_t cache_tokens = 10'000,
             int64_t max_batch_tokens = SchedulerOptions{}.max_batch_tokens) {
    options.block_key = kBlockKey;
    engine_ = *engine::Engine::Create(host_, options);
    scheduler_ = std::make_unique<Scheduler>(
        *engine_,
        SchedulerOptions{.max_batch_tokens = max_batch_tokens,
                         .block_key = kBlockKey,
                         .cache_tokens = cache_tokens,
                         .ahead_tokens = 128,
                         .on_report = [this](const protocol::RankReport&) {
                           ++pass_count_;
                           if (after_pass_ != nullptr) {
                             after_pass_(pass_count_);
                           }
                         }});
  }

  // Of a cache with so many blocks.
  int64_t BytesOf(int64_t blocks) const {
    const auto engine = *engine::Engine::Create(host_, {.prefix_cache_bytes = kPlenty});
    return blocks * kPlenty / (engine->prefix_cache_tokens() / protocol::kBlockTokens) + 1;
  }

  std::future<Answer> Submit(const protocol::Work& work, std::stop_token cancel = {}) {
    auto promise = std::make_shared<std::promise<Answer>>();
    const absl::Status status =
        scheduler_->Submit(work, std::move(cancel), [promise](Answer answer) {
          promise->set_value(std::move(answer));
        });
    EXPECT_TRUE(status.ok()) << status;
    return promise->get_future();
  }

  // To the bit what an engine without a cache says of the work alone; returns the usage.
  protocol::Usage ExpectRight(const protocol::Work& work, std::future<Answer> future) {
    const Answer answer = future.get();
    EXPECT_TRUE(answer.ok()) << answer.status();
    const protocol::Work* const works[] = {&work};
    const engine::BatchResult expected = plain_->Run(works);
    EXPECT_TRUE(expected.works[0].ok()) << expected.works[0].status();
    if (!answer.ok() || answer->sequences.size() != work.sequences.size()) {
      ADD_FAILURE() << "no answer";
      return {};
    }
    for (size_t i = 0; i < work.sequences.size(); ++i) {
      for (size_t row = 0; row < work.sequences[i].rows.size(); ++row) {
        EXPECT_EQ(answer->sequences[i].rows[row].column_logits,
                  expected.works[0]->sequences[i].rows[row].column_logits);
      }
    }
    distinct_tokens_ = expected.report.computed_tokens;
    EXPECT_EQ(answer->usage.prompt_tokens, work.token_count());
    return answer->usage;
  }

  const std::shared_ptr<const engine::HostModel> host_ = *engine::HostModel::Load(
      *checkpoint::CreateSynthetic(engine::OddSpec({false, true, true}), 7), {.thread_count = 2});
  const std::unique_ptr<engine::Engine> plain_ = *engine::Engine::Create(host_, {});
  std::unique_ptr<engine::Engine> engine_;
  std::function<void(int pass)> after_pass_;  // on the serving thread
  std::atomic<int> pass_count_ = 0;
  int64_t distinct_tokens_ = 0;  // of the work that was checked last
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerWithCache, FindsWhatItComputedAhead) {
  Start({.prefix_cache_bytes = kPlenty});
  const protocol::Work work = LongWork();
  const int64_t computed_tokens = ExpectRight(work, Submit(work)).computed_tokens;
  EXPECT_EQ(computed_tokens, distinct_tokens_);
  EXPECT_GE(pass_count_, 4);
  const int passes_before = pass_count_;
  EXPECT_LT(ExpectRight(work, Submit(work)).computed_tokens, 32);
  EXPECT_EQ(pass_count_ - passes_before, 1);
}

TEST_F(SchedulerWithCache, TwoOfOneBeginningComputeItOnce) {
  Start({.prefix_cache_bytes = kPlenty});
  const protocol::Work work = LongWork();
  protocol::Work other = work;
  for (protocol::Sequence& sequence : other.sequences) {
    sequence.tokens.back() += 50;
  }
  std::promise<void> both_wait;
  after_pass_ = [&, waiting = both_wait.get_future().share()](int pass) {
    if (pass == 1) {
      waiting.wait();
    }
  };
  std::future<Answer> first = Submit(work);
  std::future<Answer> second = Submit(other);
  both_wait.set_value();
  const int64_t computed_tokens = ExpectRight(work, std::move(first)).computed_tokens +
                                  ExpectRight(other, std::move(second)).computed_tokens;
  EXPECT_LT(computed_tokens, distinct_tokens_ + 32);
}

TEST_F(SchedulerWithCache, AnswersRightlyIfTheCacheHoldsLessThanItComputesAhead) {
  Start({.prefix_cache_bytes = BytesOf(20)});  // the third part finds no room
  const protocol::Work work = LongWork();
  const int64_t computed_tokens = ExpectRight(work, Submit(work)).computed_tokens;
  EXPECT_LE(computed_tokens, 2 * distinct_tokens_);
}

TEST_F(SchedulerWithCache, AnswersRightlyIfTheQuotaHoldsLessThanItComputesAhead) {
  Start({.prefix_cache_bytes = kPlenty, .prefix_cache_quota = 1e-9});
  protocol::Work work = LongWork();
  work.cache_salt = "mine";
  const int64_t computed_tokens = ExpectRight(work, Submit(work)).computed_tokens;
  EXPECT_LE(computed_tokens, 2 * distinct_tokens_);
  EXPECT_EQ(pass_count_, 2);  // the first part is not held: the rest at once
}

TEST_F(SchedulerWithCache, AnswersRightlyIfOthersDriveOutWhatItComputedAhead) {
  Start({.prefix_cache_bytes = BytesOf(60)});  // not two of four
  std::vector<protocol::Work> works;
  std::vector<std::future<Answer>> answers;
  for (uint32_t seed = 10; seed < 14; ++seed) {
    works.push_back(LongWork(seed));
    answers.push_back(Submit(works.back()));
  }
  for (size_t i = 0; i < works.size(); ++i) {
    const int64_t computed_tokens = ExpectRight(works[i], std::move(answers[i])).computed_tokens;
    EXPECT_LE(computed_tokens, 2 * distinct_tokens_);
  }
}

// Others run in between, more than the cache holds.
TEST_F(SchedulerWithCache, AWorkFindsWhatWasHeldWhenItBeganToWait) {
  // Nothing is computed ahead, and one work is a pass.
  Start({.prefix_cache_bytes = BytesOf(80)}, /*cache_tokens=*/16, /*max_batch_tokens=*/640);
  const protocol::Work work = LongWork();
  EXPECT_EQ(ExpectRight(work, Submit(work)).computed_tokens, distinct_tokens_);
  std::promise<void> all_wait;
  after_pass_ = [&, waiting = all_wait.get_future().share()](int pass) {
    if (pass == 2) {
      waiting.wait();
    }
  };
  std::vector<protocol::Work> works;
  std::vector<std::future<Answer>> answers;
  for (uint32_t seed = 10; seed < 30; ++seed) {
    works.push_back(LongWork(seed));
    answers.push_back(Submit(works.back()));
  }
  std::future<Answer> again = Submit(work);
  all_wait.set_value();
  for (size_t i = 0; i < works.size(); ++i) {
    ExpectRight(works[i], std::move(answers[i]));
  }
  EXPECT_LT(ExpectRight(work, std::move(again)).computed_tokens, 32);
}

TEST_F(SchedulerWithCache, AClientThatLeavesCostsNoMorePasses) {
  Start({.prefix_cache_bytes = kPlenty});
  std::stop_source client;
  after_pass_ = [&](int pass) {
    if (pass == 2) {
      client.request_stop();
    }
  };
  EXPECT_EQ(Submit(LongWork(), client.get_token()).get().status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(pass_count_, 2);
  const int64_t computed_tokens = ExpectRight(LongWork(), Submit(LongWork())).computed_tokens;
  EXPECT_LT(computed_tokens, distinct_tokens_);
}

TEST_F(SchedulerWithCache, ADeadlineCostsNoMorePasses) {
  Start({.prefix_cache_bytes = kPlenty});
  protocol::Work work = LongWork();
  work.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
  after_pass_ = [deadline = *work.deadline](int) { std::this_thread::sleep_until(deadline); };
  EXPECT_EQ(Submit(work).get().status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LE(pass_count_, 1);
}

}  // namespace
}  // namespace zp::scheduler
