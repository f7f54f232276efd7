#include "routing/request_router.h"

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "routing/testing.h"

namespace zp::routing {
namespace {

using std::chrono::seconds;

constexpr std::chrono::steady_clock::time_point kNow{};

// Takes the first rank and shows what it was shown.
class Spy final : public RoutingPolicy {
 public:
  explicit Spy(RankView& first) : first_(first) {}
  Choice Choose(const WorkView&, std::span<const RankView> ranks) override {
    first_ = ranks[0];
    return {.index = 0};
  }

 private:
  RankView& first_;
};

class RequestRouterTest : public testing::Test {
 protected:
  std::unique_ptr<RequestRouter> MakeRouter(const std::string& policy,
                                            int32_t ranks,
                                            RouterOptions options = {}) {
    auto router = std::make_unique<RequestRouter>(spec_, options, *MakePolicy(policy));
    for (RankId rank = 0; rank < ranks; ++rank) {
      EXPECT_TRUE(router->AddRank(rank).ok());
    }
    return router;
  }

  const spec::ModelSpec spec_ = TestSpec();
};

// A router that shows what its policy is shown of rank 0.
class WatchedRankTest : public RequestRouterTest {
 protected:
  WatchedRankTest() { EXPECT_TRUE(router_.AddRank(0).ok()); }

  Placement Decide(int second) {
    return *router_.Decide(router_.Profile(RandomWork(random_)), kNow + seconds(second));
  }

  RankView seen_;
  RequestRouter router_{spec_, {}, std::make_unique<Spy>(seen_)};
  std::mt19937 random_{1};
};

TEST_F(RequestRouterTest, SiblingsThatArriveTogetherArePlacedTogether) {
  const auto full = MakeRouter("full", 8, {.saturation = {.first_saturation_flops = 1e15}});
  std::mt19937 random(1);
  // Where all have work; idle ranks share them out.
  std::vector<Placement> others;
  others.reserve(8);
  for (int i = 0; i < 8; ++i) {
    others.push_back(*full->Decide(full->Profile(RandomWork(random)), kNow - seconds(60)));
  }
  protocol::Work work{.request_id = "a", .sequences = {protocol::Sequence()}};
  work.sequences[0].tokens.assign(200, 7);
  work.sequences[0].rows.push_back({.position = 199, .columns = {1}});
  const WorkProfile profile = full->Profile(work);
  const Placement first = *full->Decide(profile, kNow);
  for (int i = 0; i < 5; ++i) {
    work.sequences[0].tokens.back() = i;
    const Placement sibling = *full->Decide(full->Profile(work), kNow);
    EXPECT_EQ(sibling.rank(), first.rank());
    EXPECT_EQ(sibling.reason(), Reason::kOwner);
    EXPECT_GT(sibling.held_tokens(), 0);
    EXPECT_LT(sibling.flops(), first.flops() / 2);
  }
}

TEST_F(WatchedRankTest, KnowsWhatARanksRunningPassHasInItAndSinceWhen) {
  std::vector<Placement> placements;
  const auto decide = [&](int second) { placements.push_back(Decide(second)); };
  decide(5);  // begins a pass
  decide(6);
  EXPECT_EQ(seen_.waiting_flops, 0);
  EXPECT_EQ(seen_.pass_elapsed_s, 1);
  decide(7);
  EXPECT_EQ(seen_.waiting_flops, placements[1].flops());
  EXPECT_EQ(seen_.pass_elapsed_s, 2);
  router_.OnReport(
      0, {.flops_per_s = 1e15}, kNow + seconds(8));  // the next pass takes the other two
  placements[0].Release();
  decide(11);
  EXPECT_EQ(seen_.waiting_flops, 0);
  EXPECT_EQ(seen_.pass_elapsed_s, 3);
  EXPECT_NEAR(seen_.outstanding.flops, placements[1].flops() + placements[2].flops(), 2000);
  placements.clear();
  decide(20);  // was idle
  decide(21);
  EXPECT_EQ(seen_.waiting_flops, 0);
  EXPECT_EQ(seen_.pass_elapsed_s, 1);
}

TEST_F(WatchedRankTest, KnowsHowMuchOfTheLastSecondsARankHadWork) {
  Placement stays = Decide(1000);
  EXPECT_EQ(seen_.busy_share, 0) << "it is new";
  Decide(1001).Release();
  EXPECT_GT(seen_.busy_share, 0.2);
  Decide(1030).Release();
  EXPECT_GT(seen_.busy_share, 0.99);
  stays.Release();
  Decide(1090).Release();
  EXPECT_LT(seen_.busy_share, 0.01);
}

// A client that asks anew when it has its answer finds the rank idle each time.
TEST_F(WatchedRankTest, ARankThatWorksWithoutAPauseIsBusyWheneverDecisionsCome) {
  for (int second = 1000; second < 1030; ++second) {
    const Placement placement = Decide(second);
    router_.OnReport(0, {.flops_per_s = 1e12}, kNow + seconds(second + 1));
  }
  EXPECT_GT(seen_.busy_share, 0.99);
}

// Or it would seem to gather nothing and to answer at once, and draw prefixes from their owners.
TEST_F(WatchedRankTest, ARankOfWhichNothingIsKnownGathersAsTheOthersDo) {
  ASSERT_TRUE(router_.AddRank(1).ok());
  const protocol::RankReport report = {
      .flops_per_s = 1e12, .compute_flops_per_s = 2e12, .saturation_flops = 1e13};
  router_.OnReport(1, report, kNow + seconds(1000));
  const Placement placement = Decide(1001);
  EXPECT_EQ(seen_.id, 0);
  EXPECT_EQ(seen_.flops_per_s, 1e12);
  EXPECT_EQ(seen_.compute_flops_per_s, 2e12);
  EXPECT_EQ(seen_.saturation_flops, 1e13);
}

// A pass in which it was frozen, or gathered over a link that is mended now, says nothing any more.
TEST_F(RequestRouterTest, ARankThatLookedSlowIsTriedAgainWhileOthersWork) {
  const auto router = MakeRouter("full", 2);
  std::mt19937 random(1);
  const auto decide = [&](int second) {
    return *router->Decide(router->Profile(RandomWork(random)), kNow + seconds(second));
  };
  const protocol::RankReport fast = {.flops_per_s = 1e12, .saturation_flops = 1e10};
  router->OnReport(0, fast, kNow);
  router->OnReport(1, {.flops_per_s = 1e10, .saturation_flops = 1e12}, kNow);
  std::vector<Placement> placements;
  for (int second = 1; second <= 10; ++second) {
    placements.push_back(decide(second));
    EXPECT_EQ(placements.back().rank(), 0) << second;
    router->OnReport(0, fast, kNow + seconds(second));
  }
  placements.push_back(decide(11));
  EXPECT_EQ(placements.back().rank(), 1);
  for (int second = 12; second <= 30; ++second) {
    placements.push_back(decide(second));
    EXPECT_EQ(placements.back().rank(), 0) << "one work is enough";
    router->OnReport(0, fast, kNow + seconds(second));
  }
  // Where nobody works, what was measured last holds.
  placements.clear();
  router->OnReport(1, {.flops_per_s = 1e10, .saturation_flops = 1e12}, kNow + seconds(31));
  EXPECT_EQ(decide(60).rank(), 0);
}

// A hung engine: its host answers pings, and by the clock its pass is as good as through.
TEST_F(RequestRouterTest, ARankWhosePassDoesNotEndGetsNoMoreWorks) {
  const auto router = MakeRouter("flops", 2);
  std::mt19937 random(1);
  const WorkProfile work = router->Profile(RandomWork(random));
  const protocol::RankReport report = {.flops_per_s = work.flops};  // a second a work
  const auto place = [&](const WorkProfile& placed, int second, std::span<const RankId> excluded) {
    return *router->Decide(placed, kNow + seconds(second), {.excluded = excluded});
  };
  const auto decide = [&](int second) { return place(work, second, {}); };
  for (RankId rank = 0; rank < 2; ++rank) {
    router->OnReport(rank, report, kNow);
  }
  std::vector<Placement> placements;
  placements.push_back(decide(0));
  const RankId hung = placements.front().rank();
  const RankId other = 1 - hung;
  for (int i = 0; i < 10; ++i) {  // the other has more to do
    placements.push_back(place(router->Profile(RandomWork(random)), 32, {&hung, 1}));
  }
  EXPECT_EQ(decide(33).rank(), hung) << "it may be slow for once";
  EXPECT_EQ(decide(35).rank(), other);
  EXPECT_EQ(router->Decide(work, kNow + seconds(35), {.excluded = {&other, 1}}).status().code(),
            absl::StatusCode::kUnavailable)
      << "that the other is full makes this one no better";
  EXPECT_EQ(router
                ->Decide(work,
                         kNow + seconds(35),
                         {.is_admitted = true, .excluded = {&other, 1}, .is_resent = true})
                ->rank(),
            hung)
      << "but better than none for what was accepted";
  router->OnReport(hung, report, kNow + seconds(36));  // its pass ended after all
  EXPECT_EQ(decide(36).rank(), hung);
  placements.clear();
  placements.push_back(place(work, 40, {&other, 1}));
  router->RemoveRank(other);
  EXPECT_EQ(decide(80).rank(), hung) << "there is no other";
}

// What came while it ran and left again says nothing of what is in the pass.
TEST_F(RequestRouterTest, ARankInALongPassIsNotOverdueForWorksThatWereCancelled) {
  const auto router = MakeRouter("flops", 2);
  std::mt19937 random(1);
  const WorkProfile work = router->Profile(RandomWork(random));
  const RankId other = 1;
  const auto place = [&](int second) {
    return *router->Decide(work, kNow + seconds(second), {.excluded = {&other, 1}});
  };
  router->OnReport(0, {.flops_per_s = work.flops / 30}, kNow);  // half a minute a work
  const Placement runs = place(0);
  for (int i = 0; i < 3; ++i) {
    place(1).Release();
  }
  EXPECT_EQ(place(100).rank(), 0);
}

TEST_F(RequestRouterTest, WhatWasExpectedIsForgottenWithItsWork) {
  const auto router = MakeRouter("full", 4);
  std::mt19937 random(1);
  const WorkProfile profile = router->Profile(RandomWork(random));
  { const Placement placement = *router->Decide(profile, kNow); }
  EXPECT_EQ(router->indexed_block_count(), 0);
  EXPECT_EQ(router->Decide(profile, kNow)->held_tokens(), 0);
}

TEST_F(RequestRouterTest, LearnsFromWhatARankReports) {
  const auto router = MakeRouter("prefix", 4);
  std::mt19937 random(1);
  const WorkProfile profile = router->Profile(RandomWork(random));
  router->OnReport(3, {.cache = {.stored = profile.blocks}}, kNow);
  const Placement placement = *router->Decide(profile, kNow);
  EXPECT_EQ(placement.rank(), 3);
  router->OnReport(3, {.cache = {.is_cleared = true}}, kNow);
  EXPECT_EQ(router->Decide(profile, kNow)->held_tokens(), 0);
}

// Whatever happens to works and ranks, in any order and from any thread.
TEST_F(RequestRouterTest, TheLedgerReturnsToExactlyZero) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  constexpr RankId kRanks = 6;
  for (const std::string& policy : PolicyNames()) {
    const auto router = MakeRouter(policy, kRanks);
    const auto act = [&](uint32_t own_seed) {
      std::mt19937 random(own_seed);
      std::vector<Placement> placements;
      for (int step = 0; step < 600; ++step) {
        const uint32_t dice = random() % 10;
        if (dice < 5) {
          auto placement = router->Decide(router->Profile(RandomWork(random)), kNow);
          if (placement.ok()) {
            placements.push_back(*std::move(placement));
          }
        } else if (dice < 8 && !placements.empty()) {
          Placement& one = placements[random() % placements.size()];
          one.Correct(static_cast<double>(random() % 1000) * 1e9 / 7);
          if (random() % 2 == 0) {
            one.Release();
            one.Release();  // once more does nothing
          }
        } else if (dice == 8) {
          router->RemoveRank(static_cast<RankId>(random() % kRanks));
        } else {
          (void)router->AddRank(static_cast<RankId>(random() % kRanks));
        }
      }
    };
    {
      std::vector<std::jthread> threads;
      for (uint32_t thread = 0; thread < 4; ++thread) {
        threads.emplace_back(act, seed + thread);
      }
    }
    for (RankId rank = 0; rank < kRanks; ++rank) {
      EXPECT_EQ(router->outstanding(rank), Outstanding()) << policy;
    }
    EXPECT_EQ(router->indexed_block_count(), 0) << policy;
  }
}

TEST_F(RequestRouterTest, RefusesWhileTheLimitWaitsAndSaysWhenAllBeforeIsDone) {
  const auto router = MakeRouter("full", 1, {.admission = {.max_backlog_seconds = 3}});
  std::mt19937 random(1);
  const WorkProfile profile = router->Profile(RandomWork(random));
  router->OnReport(0, {.flops_per_s = profile.flops / 2}, kNow);  // two seconds a work
  const Placement first = *router->Decide(profile, kNow);
  const Placement second = *router->Decide(profile, kNow);
  const auto third = router->Decide(profile, kNow);
  ASSERT_TRUE(absl::IsResourceExhausted(third.status())) << third.status();
  EXPECT_EQ(third.status().GetPayload(protocol::kRetrySecondsPayload), absl::Cord("4"));
  EXPECT_TRUE(router->Decide(profile, kNow, {.is_admitted = true}).ok());
}

// Where small works take all the room that there is, a large one would never be taken.
TEST_F(RequestRouterTest, ALargeWorkHasRoomWhereASmallOneHas) {
  const auto router = MakeRouter("full", 1, {.admission = {.max_backlog_seconds = 3}});
  std::mt19937 random(1);
  WorkProfile small = router->Profile(RandomWork(random));
  WorkProfile large = small;
  large.flops = 1000 * small.flops;
  router->OnReport(0, {.flops_per_s = small.flops / 2}, kNow);
  const Placement first = *router->Decide(small, kNow);
  const Placement second = *router->Decide(large, kNow);
  EXPECT_TRUE(absl::IsResourceExhausted(router->Decide(small, kNow).status()));
}

// In whatever state: whom CheckRoom refuses, Decide would have refused, and the other way round
// where only the queue limit counts.
TEST_F(RequestRouterTest, ARefusalBeforeTheWorkIsKnownIsTheOneThatItWouldGet) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  int refused_count = 0;
  for (int round = 0; round < 50; ++round) {
    const auto router = MakeRouter("full", 2, {.admission = {.max_backlog_seconds = 5}});
    std::vector<Placement> placements;
    for (int step = 0; step < 60; ++step) {
      const auto now = kNow + std::chrono::milliseconds(100 * step);
      WorkProfile work = router->Profile(RandomWork(random));
      if (random() % 3 == 0) {
        work.deadline = now + std::chrono::milliseconds(1 + random() % 8000);
      }
      if (random() % 8 == 0) {
        router->OnReport(
            static_cast<RankId>(random() % 2), {.flops_per_s = 1e9 + random() % 100 * 1e9}, now);
      }
      if (random() % 4 == 0 && !placements.empty()) {
        placements.erase(placements.begin());
      }
      const absl::Status room = router->CheckRoom(work.deadline, now);
      auto placement = router->Decide(work, now);
      if (!room.ok()) {
        EXPECT_EQ(placement.status().code(), room.code());
        EXPECT_EQ(placement.status().GetPayload(protocol::kRetrySecondsPayload),
                  room.GetPayload(protocol::kRetrySecondsPayload));
        ++refused_count;
      }
      if (!work.deadline.has_value()) {
        EXPECT_EQ(placement.ok(), room.ok()) << room << placement.status();
      }
      if (placement.ok()) {
        placements.push_back(*std::move(placement));
      }
    }
  }
  EXPECT_GT(refused_count, 50);
}

TEST_F(RequestRouterTest, ADeadlineThatIsSoonerIsTheLimit) {
  const auto router = MakeRouter("full", 1, {.admission = {.max_backlog_seconds = 100}});
  std::mt19937 random(1);
  WorkProfile profile = router->Profile(RandomWork(random));
  router->OnReport(0, {.flops_per_s = profile.flops / 2}, kNow);
  profile.deadline = kNow + seconds(3);
  const Placement idle_takes_any = *router->Decide(profile, kNow);
  EXPECT_TRUE(absl::IsResourceExhausted(router->Decide(profile, kNow).status()));
  profile.deadline = kNow + seconds(5);
  EXPECT_TRUE(router->Decide(profile, kNow).ok());
}

TEST_F(RequestRouterTest, ADeadlineThatHasPassedIsNoMatterOfRoom) {
  const auto router = MakeRouter("full", 1);
  std::mt19937 random(1);
  WorkProfile profile = router->Profile(RandomWork(random));
  profile.deadline = kNow;
  EXPECT_TRUE(absl::IsDeadlineExceeded(router->Decide(profile, kNow).status()));
}

// In played time, and to the nearest of whole seconds.
TEST_F(RequestRouterTest, AfterTheSecondsThatARefusalNamesTheBacklogHasDrained) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 100; ++round) {
    const auto router = MakeRouter("flops", 2, {.admission = {.max_backlog_seconds = 60}});
    const WorkProfile profile = router->Profile(RandomWork(random));
    std::array<double, 2> seconds_each;
    for (RankId rank = 0; rank < 2; ++rank) {
      seconds_each[rank] = 1 + static_cast<double>(random() % 90) / 7;
      router->OnReport(rank, {.flops_per_s = profile.flops / seconds_each[rank]}, kNow);
    }
    std::vector<Placement> placements;
    while (true) {
      auto placement = router->Decide(profile, kNow);
      if (!placement.ok()) {
        break;
      }
      placement->Correct(profile.flops);  // nothing is shared in the end
      placements.push_back(*std::move(placement));
    }
    const auto refusal = router->Decide(profile, kNow);
    const absl::Cord payload = *refusal.status().GetPayload(protocol::kRetrySecondsPayload);
    const double told_s = std::stod(std::string(payload));
    double drained_s = std::numeric_limits<double>::infinity();
    for (RankId rank = 0; rank < 2; ++rank) {
      const auto count = static_cast<double>(router->outstanding(rank).requests);
      drained_s = std::min(drained_s, count * seconds_each[rank]);
    }
    constexpr double kRounding = 1e-3;  // the ledger counts whole kiloflops
    EXPECT_NEAR(told_s, drained_s, 0.5 + kRounding);
  }
}

TEST_F(RequestRouterTest, AnEmptyFleetIsUnavailable) {
  const auto router = MakeRouter("full", 0);
  std::mt19937 random(1);
  const WorkProfile profile = router->Profile(RandomWork(random));
  EXPECT_TRUE(absl::IsUnavailable(router->Decide(profile, kNow).status()));
  EXPECT_TRUE(absl::IsUnavailable(router->CheckRoom(std::nullopt, kNow)));
  ASSERT_TRUE(router->AddRank(7).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(router->AddRank(7)));
  const std::vector<RankId> excluded = {7};
  EXPECT_TRUE(absl::IsUnavailable(router->Decide(profile, kNow, {.excluded = excluded}).status()));
}

}  // namespace
}  // namespace zp::routing
