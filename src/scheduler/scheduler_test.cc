#include "scheduler/scheduler.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <ctime>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "base/metrics.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/fake_engine.h"

namespace zp::scheduler {
namespace {

using protocol::TokenId;
using protocol::Work;
using protocol::WorkResult;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Answer = absl::StatusOr<WorkResult>;

// Tokens differ from work to work, so that nothing is shared unless a test wants it.
Work MakeWork(const std::string& id, int token_count, TokenId first_token = 0) {
  static TokenId next_token = 1000;
  protocol::Sequence sequence;
  for (int i = 0; i < token_count; ++i) {
    sequence.tokens.push_back(next_token++);
  }
  if (first_token != 0) {
    sequence.tokens[0] = first_token;
  }
  return {.request_id = id, .sequences = {std::move(sequence)}};
}

std::future<Answer> Submit(Scheduler& scheduler, Work work, std::stop_token cancel = {}) {
  auto promise = std::make_shared<std::promise<Answer>>();
  const absl::Status status =
      scheduler.Submit(std::move(work), std::move(cancel), [promise](Answer answer) {
        promise->set_value(std::move(answer));
      });
  EXPECT_TRUE(status.ok()) << status;
  return promise->get_future();
}

absl::Status SubmitStatus(Scheduler& scheduler, Work work) {
  return scheduler.Submit(
      std::move(work), {}, [](const Answer&) { ADD_FAILURE() << "a refused work was answered"; });
}

// Starts a pass that lasts until the engine is let go, so that what follows gathers in the queue.
std::future<Answer> OccupyEngine(FakeEngine& engine, Scheduler& scheduler) {
  engine.Hold();
  std::future<Answer> answer = Submit(scheduler, MakeWork("first", 1));
  engine.WaitForBatches(1);
  return answer;
}

TEST(Scheduler, AnswersAWorkWithItsOwnResult) {
  FakeEngine engine;
  Scheduler scheduler(engine, {});
  const Work work = MakeWork("a", 3);
  const float expected = FakeEngine::AnswerOf(work.sequences[0]);
  const Answer answer = Submit(scheduler, work).get();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->sequences[0].pooled[0], expected);
  EXPECT_GE(answer->usage.queue_seconds, 0);
  EXPECT_GT(answer->usage.compute_seconds, 0);
}

TEST(Scheduler, GathersTheNextBatchWhileOneRuns) {
  FakeEngine engine;
  Scheduler scheduler(engine, {});
  OccupyEngine(engine, scheduler);
  std::future<Answer> b = Submit(scheduler, MakeWork("b", 5));
  std::future<Answer> c = Submit(scheduler, MakeWork("c", 5));
  engine.LetGo();
  EXPECT_TRUE(b.get().ok());
  EXPECT_TRUE(c.get().ok());
  EXPECT_THAT(engine.batches(), ElementsAre(ElementsAre("first"), ElementsAre("b", "c")));
}

TEST(Scheduler, NeverExceedsTheBatchLimitAndTakesTheShorterFirst) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_batch_tokens = 100});
  OccupyEngine(engine, scheduler);
  Submit(scheduler, MakeWork("a", 60));
  std::future<Answer> last = Submit(scheduler, MakeWork("b", 60));
  Submit(scheduler, MakeWork("c", 20));
  Submit(scheduler, MakeWork("d", 1));
  engine.LetGo();
  EXPECT_TRUE(last.get().ok());
  EXPECT_THAT(
      engine.batches(),
      ElementsAre(ElementsAre("first"), ElementsAre("d", "c"), ElementsAre("a"), ElementsAre("b")));
}

TEST(Scheduler, FillsABatchByDistinctTokens) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_batch_tokens = 100});
  OccupyEngine(engine, scheduler);
  Work work = MakeWork("a", 64);
  Submit(scheduler, work);
  Submit(scheduler, work);
  std::future<Answer> last = Submit(scheduler, work);
  engine.LetGo();
  EXPECT_TRUE(last.get().ok());
  EXPECT_THAT(engine.batches(), ElementsAre(ElementsAre("first"), ElementsAre("a", "a", "a")));
}

TEST(Scheduler, RunsASequenceLargerThanABatchAlone) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_batch_tokens = 100, .max_sequence_tokens = 500});
  OccupyEngine(engine, scheduler);
  Submit(scheduler, MakeWork("small", 10));
  std::future<Answer> last = Submit(scheduler, MakeWork("large", 400));
  Submit(scheduler, MakeWork("small too", 10));
  engine.LetGo();
  EXPECT_TRUE(last.get().ok());
  EXPECT_THAT(
      engine.batches(),
      ElementsAre(ElementsAre("first"), ElementsAre("small", "small too"), ElementsAre("large")));
}

TEST(Scheduler, ServesAWorkLargerThanABatchOverSeveralPasses) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_batch_tokens = 100});
  Work work{.request_id = "a"};
  for (int i = 0; i < 10; ++i) {
    work.sequences.push_back(MakeWork("", 40).sequences[0]);
  }
  const Answer answer = Submit(scheduler, work).get();
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_EQ(answer->sequences.size(), 10u);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(answer->sequences[i].pooled[0], FakeEngine::AnswerOf(work.sequences[i]));
  }
  EXPECT_EQ(engine.batches().size(), 5u);
}

// A work of 500 tokens with a prefix cache.
class SchedulerAhead : public ::testing::Test {
 protected:
  // Waits for the answer; returns how many tokens were computed for it.
  static int64_t ExpectAnswer(std::future<Answer> future, const Work& work) {
    const Answer answer = future.get();
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (!answer.ok()) {
      return 0;
    }
    EXPECT_EQ(answer->sequences[0].pooled[0], FakeEngine::AnswerOf(work.sequences[0]));
    return answer->usage.computed_tokens;
  }

  FakeEngine engine_;
  const Work work_ = MakeWork("a", 500);
  // Where it is cut: the answer comes after as many passes and one.
  const std::vector<int32_t> ends_ =
      PlanParts(engine_.spec(),
                protocol::BlockHasher(SchedulerOptions{}.block_key),
                work_,
                {.max_batch_tokens = SchedulerOptions{}.max_batch_tokens,
                 .ahead_tokens = 160,
                 .max_held_tokens = 10'000})
          .cuts.ahead_ends;
  std::atomic<size_t> pass_count_ = 0;
  std::atomic<size_t> losing_pass_ = 0;  // after it the cache has nothing; 0: none
  Scheduler scheduler_{engine_,
                       {.cache_tokens = 10'000,
                        .ahead_tokens = 160,
                        .on_report = [this](const protocol::RankReport&) {
                          if (++pass_count_ + 1 == losing_pass_) {
                            engine_.LoseAll();
                          }
                        }}};
};

TEST_F(SchedulerAhead, ComputesALongBeginningAheadOfTheAnswer) {
  ASSERT_GE(ends_.size(), 3u);
  EXPECT_EQ(ExpectAnswer(Submit(scheduler_, work_), work_), 500);
  EXPECT_EQ(pass_count_, ends_.size() + 1);
}

TEST_F(SchedulerAhead, ComputesTheRestAtOnceWhereTheCacheLostTheBeginning) {
  losing_pass_ = 2;
  EXPECT_EQ(ExpectAnswer(Submit(scheduler_, work_), work_), ends_[1] + 500);
  EXPECT_EQ(pass_count_, 3u);
}

TEST_F(SchedulerAhead, APartThatFailsIsNotHeldAndFailsNobody) {
  Work work = work_;
  work.sequences[0].tokens[ends_[1] - 1] = FakeEngine::kPoisonToken;
  EXPECT_EQ(ExpectAnswer(Submit(scheduler_, work), work), 500);
  EXPECT_EQ(pass_count_, 3u);
}

TEST_F(SchedulerAhead, WhoWaitsWithTheSameBeginningNeedsNoPassesForIt) {
  engine_.Hold();
  std::future<Answer> first = Submit(scheduler_, work_);
  engine_.WaitForBatches(1);
  Work other = work_;  // what runs is not held yet
  other.sequences[0].tokens.back() = 1;
  std::future<Answer> second = Submit(scheduler_, other);
  engine_.LetGo();
  EXPECT_EQ(ExpectAnswer(std::move(first), work_), 500);
  EXPECT_LT(ExpectAnswer(std::move(second), other), 40);
  EXPECT_LE(pass_count_, ends_.size() + 2);  // the answers may take turns
}

TEST_F(SchedulerAhead, WhatWasHeldIsComputedInPartsIfItIsLostBeforeItsTurn) {
  ExpectAnswer(Submit(scheduler_, work_), work_);
  EXPECT_LT(ExpectAnswer(Submit(scheduler_, work_), work_), 40);
  EXPECT_EQ(pass_count_, ends_.size() + 2);
  engine_.Hold();
  const Work other = MakeWork("other", 10);
  std::future<Answer> running = Submit(scheduler_, other);
  engine_.WaitForBatches(ends_.size() + 3);
  std::future<Answer> waiting = Submit(scheduler_, work_);  // all but its end is held
  engine_.LoseAll();
  engine_.LetGo();
  ExpectAnswer(std::move(running), other);
  EXPECT_EQ(ExpectAnswer(std::move(waiting), work_), 500);
  EXPECT_GE(pass_count_, 2 * ends_.size() + 4);
}

TEST_F(SchedulerAhead, AClientThatLeavesEndsIt) {
  engine_.Hold();
  std::stop_source client;
  std::future<Answer> answer = Submit(scheduler_, work_, client.get_token());
  engine_.WaitForBatches(1);
  client.request_stop();
  engine_.LetGo();
  EXPECT_EQ(answer.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(engine_.batches().size(), 1u);
}

TEST(Scheduler, RefusesASequenceThatCanNeverFitAndNamesTheLimit) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_sequence_tokens = 500});
  const absl::Status status = SubmitStatus(scheduler, MakeWork("a", 501));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("501"));
  EXPECT_THAT(base::MessageOf(status), HasSubstr("limit of 500"));
}

TEST(Scheduler, RefusesWhatTheEngineWouldRefuse) {
  FakeEngine engine;
  Scheduler scheduler(engine, {});
  const absl::Status status = SubmitStatus(scheduler, MakeWork("a", 3, FakeEngine::kInvalidToken));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(engine.batches().empty());
}

TEST(Scheduler, RefusesWhenTheQueueIsFullAndSaysWhenToComeAgain) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_queue_tokens = 100});
  std::future<Answer> first = OccupyEngine(engine, scheduler);
  std::future<Answer> waiting = Submit(scheduler, MakeWork("a", 99));
  EXPECT_TRUE(scheduler.CheckRoom(std::nullopt).ok());
  std::future<Answer> last = Submit(scheduler, MakeWork("b", 11));  // as a whole
  const absl::Status status = SubmitStatus(scheduler, MakeWork("c", 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("110 tokens wait"));
  EXPECT_THAT(base::MessageOf(status), HasSubstr("the limit is 100"));
  // It waits for no lock: while the scheduler has it there seems to be room.
  absl::Status early;
  for (int i = 0; i < 1000 && early.ok(); ++i) {
    early = scheduler.CheckRoom(std::nullopt);
    std::this_thread::sleep_for(std::chrono::milliseconds(early.ok() ? 1 : 0));
  }
  EXPECT_EQ(early, status);
  engine.LetGo();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(waiting.get().ok());
  EXPECT_TRUE(last.get().ok());
  EXPECT_TRUE(Submit(scheduler, MakeWork("d", 11)).get().ok());
}

// Its client was told nothing of a full queue when it came, and is not now.
TEST(Scheduler, TakesAWorkOfALostRankThoughTheQueueIsFull) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_queue_tokens = 100});
  std::future<Answer> first = OccupyEngine(engine, scheduler);
  std::future<Answer> waiting = Submit(scheduler, MakeWork("a", 100));
  protocol::Work work = MakeWork("b", 90);
  work.is_resent = true;
  std::future<Answer> resent = Submit(scheduler, std::move(work));
  EXPECT_TRUE(absl::IsResourceExhausted(SubmitStatus(scheduler, MakeWork("c", 1))));
  engine.LetGo();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(waiting.get().ok());
  EXPECT_TRUE(resent.get().ok());
}

TEST(Scheduler, ARefusalSaysHowLongTheBacklogWillTake) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_queue_tokens = 10'000});
  std::future<Answer> first = OccupyEngine(engine, scheduler);
  Submit(scheduler, MakeWork("a", 9'000));
  Submit(scheduler, MakeWork("b", 1'000));
  const absl::Status status = SubmitStatus(scheduler, MakeWork("c", 2'000));
  // 10,001 tokens at the speed that is assumed until a pass was measured: 1,000 a second, attention
  // not counted.
  const std::string seconds(
      status.GetPayload(protocol::kRetrySecondsPayload).value_or(absl::Cord()));
  EXPECT_THAT(base::MessageOf(status), HasSubstr("in about " + seconds + " s"));
  EXPECT_GE(std::stoi("0" + seconds), 10);
  EXPECT_LT(std::stoi("0" + seconds), 1000);
  engine.LetGo();
  EXPECT_TRUE(first.get().ok());
}

TEST(Scheduler, FailureOfOneWorkStaysItsOwn) {
  FakeEngine engine;
  Scheduler scheduler(engine, {});
  OccupyEngine(engine, scheduler);
  std::future<Answer> good = Submit(scheduler, MakeWork("a", 3));
  std::future<Answer> bad = Submit(scheduler, MakeWork("b", 3, FakeEngine::kPoisonToken));
  std::future<Answer> good_too = Submit(scheduler, MakeWork("c", 3));
  engine.LetGo();
  EXPECT_TRUE(good.get().ok());
  EXPECT_EQ(bad.get().status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(good_too.get().ok());
}

TEST(Scheduler, DropsCancelledWorkBeforeItCostsCompute) {
  FakeEngine engine;
  Scheduler scheduler(engine, {});
  OccupyEngine(engine, scheduler);
  std::stop_source client;
  std::future<Answer> cancelled = Submit(scheduler, MakeWork("a", 3), client.get_token());
  std::future<Answer> kept = Submit(scheduler, MakeWork("b", 3));
  client.request_stop();
  engine.LetGo();
  EXPECT_EQ(cancelled.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(kept.get().ok());
  EXPECT_THAT(engine.batches(), ElementsAre(ElementsAre("first"), ElementsAre("b")));
}

TEST(Scheduler, DropsWorkPastItsDeadlineWhileAPassRuns) {
  FakeEngine engine;
  Scheduler scheduler(engine, {});
  std::future<Answer> first = OccupyEngine(engine, scheduler);
  Work work = MakeWork("a", 3);
  work.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
  EXPECT_EQ(Submit(scheduler, work).get().status().code(), absl::StatusCode::kDeadlineExceeded);
  engine.LetGo();
  EXPECT_TRUE(first.get().ok());
  EXPECT_THAT(engine.batches(), ElementsAre(ElementsAre("first")));
}

TEST(Scheduler, TakesTheBetterPriorityFirst) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_batch_tokens = 100});
  OccupyEngine(engine, scheduler);
  Work late = MakeWork("late", 10);
  late.priority = 1;
  std::future<Answer> last = Submit(scheduler, late);
  Submit(scheduler, MakeWork("normal", 90));
  Work early = MakeWork("early", 90);
  early.priority = -1;
  Submit(scheduler, early);
  engine.LetGo();
  EXPECT_TRUE(last.get().ok());
  EXPECT_THAT(
      engine.batches(),
      ElementsAre(ElementsAre("first"), ElementsAre("early"), ElementsAre("normal", "late")));
}

TEST(Scheduler, DoesNotComputeTheRestOfAWorkThatFailed) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.max_batch_tokens = 100});
  OccupyEngine(engine, scheduler);
  Work work = MakeWork("a", 90, FakeEngine::kPoisonToken);
  for (int i = 0; i < 9; ++i) {
    work.sequences.push_back(MakeWork("", 90).sequences[0]);
  }
  std::future<Answer> answer = Submit(scheduler, work);
  engine.LetGo();
  EXPECT_EQ(answer.get().status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(Submit(scheduler, MakeWork("b", 3)).get().ok());
  EXPECT_THAT(engine.batches(),
              ElementsAre(ElementsAre("first"), ElementsAre("a"), ElementsAre("b")));
}

TEST(Scheduler, HoldsABatchThatDoesNotHideItsGathers) {
  FakeEngine engine;
  engine.SetLayers({{.compute_seconds = 1, .gather_seconds = 50, .gathered_bytes = 1}, {}});
  Scheduler scheduler(engine, {.max_hold = std::chrono::hours(1)});
  EXPECT_TRUE(Submit(scheduler, MakeWork("first", 10)).get().ok());
  std::future<Answer> held = Submit(scheduler, MakeWork("a", 20));
  EXPECT_EQ(held.wait_for(std::chrono::milliseconds(5)), std::future_status::timeout);
  std::future<Answer> company = Submit(scheduler, MakeWork("b", 500));
  EXPECT_TRUE(held.get().ok());
  EXPECT_TRUE(company.get().ok());
  EXPECT_THAT(engine.batches(), ElementsAre(ElementsAre("first"), ElementsAre("a", "b")));
}

TEST(Scheduler, ReportsWhatEachPassShowed) {
  FakeEngine engine;
  engine.SetLayers({{.compute_seconds = 1, .gather_seconds = 3, .gathered_bytes = 1}, {}});
  std::vector<protocol::RankReport> reports;
  Scheduler scheduler(engine, {.on_report = [&](const protocol::RankReport& report) {
                        reports.push_back(report);
                      }});
  const Work work = MakeWork("a", 20);
  EXPECT_TRUE(Submit(scheduler, work).get().ok());
  ASSERT_EQ(reports.size(), 1u);  // before the answer
  EXPECT_GT(reports[0].flops_per_s, 0);
  EXPECT_EQ(reports[0].saturation_tokens, 60);
  const double flops = protocol::CostOf(engine.spec(), work).flops;
  EXPECT_DOUBLE_EQ(reports[0].saturation_flops, 3 * flops);
  EXPECT_EQ(reports[0].cache.stored.size(), 1u);
}

// An engine that hangs shows there, while its host answers all that is asked of it.
TEST(Scheduler, ShowsSinceWhenItsPassRuns) {
  FakeEngine engine;
  Scheduler scheduler(engine, {.rank = 77});
  const base::Gauge& start =
      base::GetGauge("zeroprefill_pass_start_time_seconds", "", {{"rank", "77"}});
  EXPECT_EQ(start.Value(), 0);
  std::future<Answer> answer = OccupyEngine(engine, scheduler);
  EXPECT_NEAR(start.Value(), static_cast<double>(std::time(nullptr)), 60);
  engine.LetGo();
  EXPECT_TRUE(answer.get().ok());
  EXPECT_EQ(start.Value(), 0);
}

TEST(Scheduler, AnswersARunningWorkThoughItsClientLeft) {
  FakeEngine engine;
  engine.Hold();
  Scheduler scheduler(engine, {});
  std::stop_source client;
  std::future<Answer> answer = Submit(scheduler, MakeWork("a", 3), client.get_token());
  engine.WaitForBatches(1);
  client.request_stop();
  engine.LetGo();
  EXPECT_TRUE(answer.get().ok());
}

TEST(Scheduler, ClosesTheGateAndAnswersAllThatWaitsWhenItIsDestroyed) {
  FakeEngine engine;
  auto scheduler = std::make_unique<Scheduler>(engine, SchedulerOptions{});
  std::future<Answer> running = OccupyEngine(engine, *scheduler);
  std::future<Answer> waiting = Submit(*scheduler, MakeWork("a", 3));
  Scheduler& ending = *scheduler;  // it ends no sooner than its pass
  std::thread destroyer([&] { scheduler.reset(); });
  absl::Status status;
  while (status.ok()) {
    status = ending.Submit(MakeWork("b", 3), {}, [](const Answer& answer) {
      EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnavailable);
    });
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  engine.LetGo();
  destroyer.join();
  EXPECT_TRUE(running.get().ok());
  EXPECT_EQ(waiting.get().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine.batches().size(), 1u);
}

TEST(Scheduler, AnswerMaySubmitTheNextWork) {
  FakeEngine engine;
  Scheduler scheduler(engine, {});
  std::promise<Answer> second;
  const Work next = MakeWork("b", 2);
  const absl::Status status = scheduler.Submit(MakeWork("a", 2), {}, [&](const Answer&) {
    EXPECT_TRUE(
        scheduler.Submit(next, {}, [&](Answer answer) { second.set_value(std::move(answer)); })
            .ok());
  });
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(second.get_future().get().ok());
}

}  // namespace
}  // namespace zp::scheduler
