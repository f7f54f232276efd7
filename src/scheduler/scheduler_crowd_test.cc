// Many clients at once, in random interleavings: whatever happens, each accepted work is answered
// exactly once and with its own answer. Meant to run under the thread sanitizer, too.
#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "base/logging.h"
#include "gtest/gtest.h"
#include "scheduler/fake_engine.h"
#include "scheduler/scheduler.h"

namespace zp::scheduler {
namespace {

constexpr int kClientCount = 4;
constexpr int kWorksPerClient = 150;

struct Tally {
  std::atomic<int> accepted{0};
  std::atomic<int> answered{0};
  std::atomic<int> correct{0};
  std::atomic<int> wrong{0};
  std::atomic<int> cancelled{0};
  std::atomic<int> unavailable{0};
  std::atomic<int> poisoned{0};
};

protocol::Work RandomWork(std::mt19937& random, int client) {
  protocol::Work work{.request_id = "client " + std::to_string(client)};
  const auto sequence_count = std::uniform_int_distribution<int>(1, 12)(random);
  for (int i = 0; i < sequence_count; ++i) {
    std::vector<protocol::TokenId> tokens(std::uniform_int_distribution<int>(1, 60)(random));
    std::generate(tokens.begin(), tokens.end(), [&] {
      return std::uniform_int_distribution<int>(0, 400)(random);
    });
    work.sequences.push_back({.tokens = std::move(tokens)});
  }
  if (random() % 20 == 0) {
    work.sequences[0].tokens[0] = FakeEngine::kPoisonToken;
  }
  return work;
}

// Counts an answer by its kind; `expected` are the sums of the work's sequences.
void Count(const absl::StatusOr<protocol::WorkResult>& answer,
           const std::vector<float>& expected,
           Tally& tally) {
  if (answer.ok()) {
    bool equal = answer->sequences.size() == expected.size();
    for (size_t i = 0; equal && i < expected.size(); ++i) {
      equal = answer->sequences[i].pooled[0] == expected[i];
    }
    (equal ? tally.correct : tally.wrong).fetch_add(1);
  } else if (answer.status().code() == absl::StatusCode::kCancelled) {
    tally.cancelled.fetch_add(1);
  } else if (answer.status().code() == absl::StatusCode::kUnavailable) {
    tally.unavailable.fetch_add(1);
  } else {
    tally.poisoned.fetch_add(1);
  }
  tally.answered.fetch_add(1);
  tally.answered.notify_all();
}

void RunClient(Scheduler& scheduler, int client, uint32_t seed, Tally& tally) {
  std::mt19937 random(seed);
  std::vector<std::stop_source> stop_sources;
  for (int i = 0; i < kWorksPerClient; ++i) {
    protocol::Work work = RandomWork(random, client);
    std::vector<float> expected;
    expected.reserve(work.sequences.size());
    for (const protocol::Sequence& sequence : work.sequences) {
      expected.push_back(FakeEngine::AnswerOf(sequence));
    }
    std::stop_source& stop_source = stop_sources.emplace_back();
    const absl::Status status = scheduler.Submit(
        std::move(work), stop_source.get_token(), [expected, &tally](const auto& answer) {
          Count(answer, expected, tally);
        });
    tally.accepted.fetch_add(status.ok() ? 1 : 0);
    if (random() % 4 == 0) {
      stop_sources[random() % stop_sources.size()].request_stop();
    }
    if (random() % 16 == 0) {
      std::this_thread::yield();
    }
  }
}

std::vector<std::jthread> StartClients(Scheduler& scheduler, uint32_t seed, Tally& tally) {
  std::vector<std::jthread> clients;
  clients.reserve(kClientCount);
  for (int client = 0; client < kClientCount; ++client) {
    clients.emplace_back([&scheduler, &tally, client, seed] {
      RunClient(scheduler, client, seed * kClientCount + client, tally);
    });
  }
  return clients;
}

// Once no client submits any more.
void WaitForAllAnswers(const Tally& tally) {
  for (int answered = tally.answered; answered < tally.accepted; answered = tally.answered) {
    tally.answered.wait(answered);
  }
}

void ExpectEveryWorkAnsweredOnce(const Tally& tally) {
  EXPECT_EQ(tally.answered, tally.accepted);
  EXPECT_EQ(tally.wrong, 0);
  EXPECT_EQ(tally.correct + tally.cancelled + tally.unavailable + tally.poisoned, tally.answered);
}

class Crowd : public ::testing::TestWithParam<uint32_t> {
  // Hundreds of works fail on purpose.
  void SetUp() override { base::log::set_level(base::log::level::off); }
};

TEST_P(Crowd, IsAnsweredOnceEach) {
  FakeEngine engine;
  Tally tally;
  Scheduler scheduler(engine, {.max_batch_tokens = 300, .max_queue_tokens = 4000});
  std::vector<std::jthread> clients = StartClients(scheduler, GetParam(), tally);
  clients.clear();
  WaitForAllAnswers(tally);
  ExpectEveryWorkAnsweredOnce(tally);
  EXPECT_EQ(tally.unavailable, 0);
}

TEST_P(Crowd, IsAnsweredOnceEachWhenTheGateClosesInItsMidst) {
  FakeEngine engine;
  Tally tally;
  auto scheduler = std::make_unique<Scheduler>(
      engine, SchedulerOptions{.max_batch_tokens = 300, .max_queue_tokens = 4000});
  const size_t last_batch = GetParam() % 5 + 1;
  engine.HoldFrom(last_batch);
  std::vector<std::jthread> clients = StartClients(*scheduler, GetParam(), tally);
  engine.WaitForBatches(last_batch);
  std::thread destroyer([&] { delete scheduler.release(); });  // it ends no sooner than its pass
  clients.clear();
  engine.LetGo();
  destroyer.join();
  ExpectEveryWorkAnsweredOnce(tally);
}

INSTANTIATE_TEST_SUITE_P(Seeds, Crowd, ::testing::Range(0u, 8u));

}  // namespace
}  // namespace zp::scheduler
