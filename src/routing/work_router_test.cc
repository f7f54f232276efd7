#include "routing/work_router.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/metrics.h"
#include "gtest/gtest.h"
#include "routing/testing.h"

namespace zp::routing {
namespace {

using protocol::Work;
using protocol::WorkResult;
using protocol::WorkSink;

// Keeps what it is given until the test says what becomes of it.
class HeldSink : public WorkSink {
 public:
  absl::Status Submit(Work work, std::stop_token, Done done) override {
    const std::lock_guard lock(mutex_);
    ++submit_count_;
    resent_count_ += work.is_resent ? 1 : 0;
    if (!refusal_.ok()) {
      // A new one: Debian's Abseil counts references where the thread sanitizer does not look.
      return absl::Status(refusal_.code(), "refused");
    }
    waiting_.push_back(std::move(done));
    return absl::OkStatus();
  }

  absl::Status CheckRoom(std::optional<std::chrono::steady_clock::time_point>) override {
    const std::lock_guard lock(mutex_);
    return refusal_;
  }

  void Refuse(absl::Status refusal) {
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(refusal);
  }
  // Of the one that waits longest; false if none does.
  bool Answer(absl::StatusOr<WorkResult> answer) {
    Done done;
    {
      const std::lock_guard lock(mutex_);
      if (waiting_.empty()) {
        return false;
      }
      done = std::move(waiting_.front());
      waiting_.erase(waiting_.begin());
    }
    done(std::move(answer));
    return true;
  }
  int submit_count() const {
    const std::lock_guard lock(mutex_);
    return submit_count_;
  }
  int resent_count() const {
    const std::lock_guard lock(mutex_);
    return resent_count_;
  }

 private:
  mutable std::mutex mutex_;
  absl::Status refusal_;
  std::vector<Done> waiting_;
  int submit_count_ = 0;
  int resent_count_ = 0;
};

class WorkRouterTest : public testing::Test {
 protected:
  void SetUp() override {
    for (RankId rank = 0; rank < 2; ++rank) {
      ASSERT_TRUE(router_.AddRank(rank, sinks_[rank]).ok());
    }
  }
  absl::Status Submit(std::stop_token cancel = {}) {
    return router_.Submit(RandomWork(random_), std::move(cancel), [this](const auto& answer) {
      answers_.push_back(answer.status());
    });
  }
  int64_t outstanding() const {
    return router_.decisions().outstanding(0).requests +
           router_.decisions().outstanding(1).requests;
  }

  std::mt19937 random_{1};
  HeldSink sinks_[2];
  std::vector<absl::Status> answers_;
  WorkRouter router_{TestSpec(), {}, *MakePolicy("round_robin")};
};

TEST_F(WorkRouterTest, GivesTheAnswerOn) {
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(outstanding(), 1);
  ASSERT_TRUE(sinks_[0].Answer(WorkResult()));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_TRUE(answers_[0].ok());
  EXPECT_EQ(outstanding(), 0);
}

TEST_F(WorkRouterTest, SendsTheWorkOfALostRankElsewhereOnce) {
  ASSERT_TRUE(Submit().ok());
  sinks_[0].Answer(absl::UnavailableError("gone"));
  EXPECT_TRUE(answers_.empty());
  EXPECT_EQ(outstanding(), 1);
  sinks_[1].Answer(absl::UnavailableError("gone as well"));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_TRUE(absl::IsUnavailable(answers_[0]));
  EXPECT_EQ(outstanding(), 0);
}

TEST_F(WorkRouterTest, DropsAnAnswerThatComesAfterTheRankWasRemoved) {
  ASSERT_TRUE(Submit().ok());
  router_.RemoveRank(0);
  EXPECT_EQ(sinks_[1].submit_count(), 1);
  sinks_[0].Answer(WorkResult());  // late
  EXPECT_TRUE(answers_.empty());
  sinks_[1].Answer(WorkResult());
  EXPECT_EQ(answers_.size(), 1u);
}

TEST_F(WorkRouterTest, SaysOfAWorkThatItWasAcceptedBefore) {
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(sinks_[0].resent_count(), 0);
  router_.RemoveRank(0);
  EXPECT_EQ(sinks_[1].resent_count(), 1);
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(sinks_[1].resent_count(), 1) << "a new one is not";
  while (sinks_[1].Answer(WorkResult())) {
  }
}

// The one that was full when it came takes it: there may be no other.
TEST_F(WorkRouterTest, SendsTheWorkOfALostRankToOneThatRefusedItBefore) {
  sinks_[0].Refuse(absl::ResourceExhaustedError("full"));
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(sinks_[1].submit_count(), 1);
  sinks_[0].Refuse(absl::OkStatus());
  router_.RemoveRank(1);
  EXPECT_EQ(sinks_[0].resent_count(), 1);
  sinks_[0].Answer(WorkResult());
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_TRUE(answers_[0].ok());
}

// Asked to end in time, where a pass does not end: what it answers later is late.
TEST_F(WorkRouterTest, AnswersAllThatIsOutWhenItIsClosed) {
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(Submit().ok());
  }
  router_.Close();
  ASSERT_EQ(answers_.size(), 4u);
  for (const absl::Status& answer : answers_) {
    EXPECT_TRUE(absl::IsUnavailable(answer));
  }
  EXPECT_EQ(outstanding(), 0);
  EXPECT_TRUE(absl::IsUnavailable(Submit()));
  for (HeldSink& sink : sinks_) {
    while (sink.Answer(WorkResult())) {
    }
  }
  EXPECT_EQ(answers_.size(), 4u);
}

TEST_F(WorkRouterTest, AsksASecondRankWhereTheFirstRefuses) {
  sinks_[0].Refuse(absl::ResourceExhaustedError("full"));
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(sinks_[1].submit_count(), 1);
  sinks_[1].Refuse(absl::ResourceExhaustedError("full too"));
  EXPECT_TRUE(absl::IsResourceExhausted(Submit()));
  EXPECT_EQ(outstanding(), 1);
}

TEST_F(WorkRouterTest, SaysBeforeAWorkIsMadeThatTheQueuesOfAllRanksAreFull) {
  EXPECT_TRUE(router_.CheckRoom(std::nullopt).ok());
  sinks_[0].Refuse(absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(router_.CheckRoom(std::nullopt).ok());
  sinks_[1].Refuse(absl::ResourceExhaustedError("full too"));
  EXPECT_TRUE(absl::IsResourceExhausted(router_.CheckRoom(std::nullopt)));
  router_.RemoveRank(0);
  EXPECT_TRUE(absl::IsResourceExhausted(router_.CheckRoom(std::nullopt)));
  router_.RemoveRank(1);
  EXPECT_TRUE(absl::IsUnavailable(router_.CheckRoom(std::nullopt)));
}

TEST_F(WorkRouterTest, AsksASecondRankWhereTheFirstRefusesInItsAnswer) {
  ASSERT_TRUE(Submit().ok());
  sinks_[0].Answer(absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(answers_.empty());
  EXPECT_EQ(sinks_[1].submit_count(), 1);
  sinks_[1].Answer(absl::ResourceExhaustedError("full too"));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_TRUE(absl::IsResourceExhausted(answers_[0]));
  EXPECT_EQ(outstanding(), 0);
}

TEST_F(WorkRouterTest, OfTwoRefusalsTheClientHearsTheOneThatSaysWhenToComeAgain) {
  sinks_[0].Refuse(absl::ResourceExhaustedError("full"));
  sinks_[1].Refuse(absl::UnavailableError("going"));
  EXPECT_TRUE(absl::IsResourceExhausted(Submit()));
  EXPECT_TRUE(absl::IsResourceExhausted(Submit()));  // in the other order
  EXPECT_EQ(outstanding(), 0);
}

TEST_F(WorkRouterTest, ShowsNothingAtARankThatIsGone) {
  const std::string gauge = "zeroprefill_router_outstanding_requests{rank=\"41\"} ";
  HeldSink sink;
  router_.RemoveRank(0);
  router_.RemoveRank(1);
  ASSERT_TRUE(router_.AddRank(41, sink).ok());
  ASSERT_TRUE(Submit().ok());
  EXPECT_NE(base::MetricsText().find(gauge + "1\n"), std::string::npos);
  router_.RemoveRank(41);
  EXPECT_NE(base::MetricsText().find(gauge + "0\n"), std::string::npos);
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_TRUE(absl::IsUnavailable(answers_[0]));
}

TEST_F(WorkRouterTest, AMistakeInTheWorkIsNotTriedTwice) {
  sinks_[0].Refuse(absl::InvalidArgumentError("bad"));
  EXPECT_TRUE(absl::IsInvalidArgument(Submit()));
  EXPECT_EQ(sinks_[1].submit_count(), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(router_.Submit(Work(), {}, nullptr)));
  EXPECT_TRUE(absl::IsInvalidArgument(
      router_.Submit(Work{.sequences = {protocol::Sequence()}}, {}, nullptr)));
}

TEST_F(WorkRouterTest, DoesNotSendElsewhereWhatNobodyWaitsFor) {
  std::stop_source cancel;
  ASSERT_TRUE(Submit(cancel.get_token()).ok());
  cancel.request_stop();
  sinks_[0].Answer(absl::UnavailableError("gone"));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_TRUE(absl::IsCancelled(answers_[0]));
}

TEST(WorkRouterEnd, AnswersWhatIsStillOut) {
  HeldSink sink;
  absl::Status answer;
  {
    WorkRouter router(TestSpec(), {}, *MakePolicy("full"));
    ASSERT_TRUE(router.AddRank(0, sink).ok());
    std::mt19937 random(1);
    ASSERT_TRUE(
        router.Submit(RandomWork(random), {}, [&](const auto& one) { answer = one.status(); })
            .ok());
  }
  EXPECT_TRUE(absl::IsUnavailable(answer));
  sink.Answer(WorkResult());  // late, and harmless
}

// A rank that two threads add and remove at once is there with its sink or is not there at all.
TEST(WorkRouterSoak, ARankIsThereWithItsSinkOrNotAtAll) {
  HeldSink sink;
  WorkRouter router(TestSpec(), {}, *MakePolicy("full"));
  const auto add_and_remove = [&] {
    for (int i = 0; i < 2000; ++i) {
      (void)router.AddRank(0, sink);
      router.RemoveRank(0);
    }
  };
  {
    std::jthread one(add_and_remove);
    std::jthread other(add_and_remove);
  }
  router.RemoveRank(0);
  EXPECT_TRUE(router.decisions().ranks().empty());
  EXPECT_TRUE(router.AddRank(0, sink).ok());
}

// Many clients, ranks that answer, fail, refuse, come and go: every work is answered once.
TEST(WorkRouterSoak, LosesNothingAndAnswersNothingTwice) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  constexpr RankId kRanks = 4;
  constexpr int kWorks = 1500;
  std::vector<HeldSink> sinks(kRanks);
  WorkRouter router(TestSpec(), {}, *MakePolicy("full"));
  for (RankId rank = 0; rank < kRanks; ++rank) {
    ASSERT_TRUE(router.AddRank(rank, sinks[rank]).ok());
  }
  std::vector<std::atomic<int>> answer_counts(2 * kWorks);
  std::atomic<int> refused = 0;
  std::atomic<bool> is_over = false;
  {
    std::vector<std::jthread> workers;
    for (RankId rank = 0; rank < kRanks; ++rank) {
      workers.emplace_back([&, rank] {
        std::mt19937 random(seed + 100 + rank);
        while (!is_over) {
          const uint32_t dice = random() % 100;
          if (dice < 80) {
            sinks[rank].Answer(WorkResult());
          } else if (dice < 84) {
            sinks[rank].Answer(absl::UnavailableError("lost"));
          } else if (dice == 84) {
            sinks[rank].Answer(absl::InternalError("failed"));
          } else if (dice == 85) {
            sinks[rank].Answer(absl::ResourceExhaustedError("full"));
          } else if (dice == 86) {
            sinks[rank].Refuse(absl::ResourceExhaustedError("full"));
          } else if (dice < 92) {
            sinks[rank].Refuse(absl::OkStatus());
          } else if (dice == 92 && rank != 0) {
            router.RemoveRank(rank);
            (void)router.AddRank(rank, sinks[rank]);
          } else {
            std::this_thread::yield();
          }
        }
      });
    }
    {
      std::vector<std::jthread> clients;
      for (int client = 0; client < 2; ++client) {
        clients.emplace_back([&, client] {
          std::mt19937 random(seed + client);
          for (int work = client * kWorks; work < (client + 1) * kWorks; ++work) {
            std::stop_source cancel;
            const absl::Status status =
                router.Submit(RandomWork(random), cancel.get_token(), [&, work](const auto&) {
                  ++answer_counts[work];
                });
            if (random() % 4 == 0) {
              cancel.request_stop();
            }
            if (!status.ok()) {
              ++answer_counts[work];
              ++refused;
            }
          }
        });
      }
    }
    int64_t outstanding = 1;
    while (outstanding > 0) {  // the workers answer what is left
      outstanding = 0;
      for (const auto& count : answer_counts) {
        outstanding += count == 0 ? 1 : 0;
      }
      std::this_thread::yield();
    }
    is_over = true;
  }
  for (const auto& count : answer_counts) {
    EXPECT_EQ(count, 1);
  }
  for (RankId rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(router.decisions().outstanding(rank), Outstanding());
  }
}

}  // namespace
}  // namespace zp::routing
