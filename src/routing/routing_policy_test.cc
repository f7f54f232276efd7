#include "routing/routing_policy.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::routing {
namespace {

RankView Rank(RankId id, int64_t requests, double outstanding, double cost, int64_t held = 0) {
  return {.id = id,
          .slot = id,
          .outstanding = {.requests = requests, .tokens = 100 * requests, .flops = outstanding},
          .saturation_flops = 100,
          .flops_per_s = 10,
          .compute_flops_per_s = 10,
          .held_tokens = held,
          .cost_flops = cost,
          .tie_break = static_cast<uint64_t>(id)};
}

constexpr WorkView kWork = {.prompt_tokens = 1000, .flops = 50};

Choice Choose(const std::string& policy, const std::vector<RankView>& ranks) {
  return (*MakePolicy(policy))->Choose(kWork, ranks);
}

TEST(RoutingPolicy, RoundRobinGoesRound) {
  const auto policy = *MakePolicy("round_robin");
  const std::vector<RankView> ranks = {Rank(0, 9, 9, 1), Rank(1, 0, 0, 1)};
  EXPECT_EQ(policy->Choose(kWork, ranks).index, 0u);
  EXPECT_EQ(policy->Choose(kWork, ranks).index, 1u);
  EXPECT_EQ(policy->Choose(kWork, ranks).index, 0u);
}

TEST(RoutingPolicy, RequestsAndFlopsAreNotTheSameLoad) {
  const std::vector<RankView> ranks = {Rank(0, 1, 900, 50), Rank(1, 5, 10, 50)};
  EXPECT_EQ(Choose("least_requests", ranks).index, 0u);
  EXPECT_EQ(Choose("flops", ranks).index, 1u);
}

TEST(RoutingPolicy, CacheAwareFollowsThePrefixUntilRequestsAreOutOfBalance) {
  EXPECT_EQ(Choose("cache_aware", {Rank(0, 0, 0, 50), Rank(1, 60, 600, 10, 800)}).index, 1u);
  EXPECT_EQ(Choose("cache_aware", {Rank(0, 0, 0, 50), Rank(1, 70, 700, 10, 800)}).index, 0u);
  EXPECT_EQ(Choose("cache_aware", {Rank(0, 0, 0, 50), Rank(1, 1, 10, 40, 200)}).index, 0u)
      << "less than 0.3 of the prompt";
}

TEST(RoutingPolicy, PrefixGoesToTheOwnerWhateverItsLoad) {
  EXPECT_EQ(Choose("prefix", {Rank(0, 0, 0, 50), Rank(1, 99, 9999, 10, 800)}).index, 1u);
}

TEST(RoutingPolicy, PrefixFlopsLeavesAnOwnerThatIsMuchBusier) {
  EXPECT_EQ(Choose("prefix_flops", {Rank(0, 1, 100, 50), Rank(1, 1, 150, 10, 800)}).index, 1u);
  EXPECT_EQ(Choose("prefix_flops", {Rank(0, 1, 100, 50), Rank(1, 1, 250, 10, 800)}).index, 0u);
}

// Of ranks that compute 10 FLOPs a second. `waiting` of the outstanding are not in the pass that
// runs since `elapsed_s`.
RankView Busy(RankId id, double outstanding, double waiting, double elapsed_s, double cost) {
  RankView rank = Rank(id, 1, outstanding, cost);
  rank.waiting_flops = waiting;
  rank.pass_elapsed_s = elapsed_s;
  return rank;
}

// Elsewhere: 50 FLOPs, 5 s, and 8 times as much for what they keep from others: 45. At the owner
// the wait, 1 s, and 8.
TEST(RoutingPolicy, FullKeepsTheOwnerWhileWaitingIsWorthWhatWouldBeComputedTwice) {
  const auto choose = [](double outstanding) {
    std::vector<RankView> ranks = {Rank(0, 0, 0, 50), Rank(1, 9, outstanding, 10, 800)};
    ranks[0].saturation_flops = ranks[1].saturation_flops = 0;
    return Choose("full", ranks);
  };
  EXPECT_EQ(choose(350).index, 1u);
  EXPECT_EQ(choose(350).reason, Reason::kOwner);
  EXPECT_EQ(choose(370).index, 0u);
  EXPECT_EQ(choose(370).reason, Reason::kLeast);
}

TEST(RoutingPolicy, FullDoesNotScatterAPrefixWhereNothingIsGatheredAndLittleWaits) {
  std::vector<RankView> ranks = {Rank(0, 0, 0, 50), Rank(1, 3, 60, 10, 800), Rank(2, 0, 0, 50)};
  for (RankView& rank : ranks) {
    rank.saturation_flops = 0;
  }
  EXPECT_EQ(Choose("full", ranks).index, 1u);
}

// 5 s elsewhere beside 6 s and more at the owner: what an idle rank computes twice nobody lacks.
TEST(RoutingPolicy, FullReplicatesAPrefixAtOnceWhereARankIsIdleMostOfTheTime) {
  std::vector<RankView> ranks = {Rank(0, 0, 0, 50), Rank(1, 3, 60, 10, 800)};
  ranks[0].saturation_flops = ranks[1].saturation_flops = 0;
  ranks[0].busy_share = 0.5;
  EXPECT_EQ(Choose("full", ranks).index, 1u);
  ranks[0].busy_share = 0.1;
  EXPECT_EQ(Choose("full", ranks).index, 0u);
}

TEST(RoutingPolicy, FullTakesBelowSaturationTheRankWhosePassEndsFirst) {
  EXPECT_EQ(Choose("full", {Busy(0, 20, 0, 2, 50), Busy(1, 60, 0, 7, 50)}).index, 1u)
      << "both gather for 10 s, whatever they compute";
  EXPECT_EQ(Choose("full", {Busy(0, 20, 0, 2, 50), Busy(1, 60, 0, 7, 50), Rank(2, 0, 0, 50)}).index,
            2u)
      << "an idle one begins at once";
}

TEST(RoutingPolicy, FullFillsTheNextPassUpToSaturationAndNoFurther) {
  const Choice fill = Choose("full", {Busy(0, 60, 40, 2, 50), Busy(1, 20, 0, 1, 50)});
  EXPECT_EQ(fill.index, 0u) << "with 90 of 100 its pass takes no longer than an empty one";
  EXPECT_EQ(Choose("full", {Busy(0, 90, 70, 2, 50), Busy(1, 20, 0, 1, 50)}).index, 1u);
  EXPECT_EQ(Choose("full", {Busy(0, 40, 20, 5, 50), Busy(1, 20, 0, 1, 50)}).reason, Reason::kFill);
}

TEST(RoutingPolicy, FullCountsTheSecondsOfTheRankNotItsFlops) {
  std::vector<RankView> ranks = {Rank(0, 1, 300, 50), Rank(1, 1, 400, 50)};
  ranks[1].compute_flops_per_s = 20;
  EXPECT_EQ(Choose("full", ranks).index, 1u);
  EXPECT_EQ(Choose("flops", ranks).index, 0u);
}

TEST(RoutingPolicy, FullCountsWorkAloneBeforeASpeedIsKnown) {
  std::vector<RankView> ranks = {Rank(0, 0, 0, 50), Rank(1, 1, 50, 10, 800)};
  ranks[0].compute_flops_per_s = ranks[1].compute_flops_per_s = 0;
  EXPECT_EQ(Choose("full", ranks).index, 1u);
}

TEST(RoutingPolicy, TiesGoByRendezvous) {
  std::vector<RankView> ranks = {Rank(0, 0, 0, 50), Rank(1, 0, 0, 50)};
  ranks[0].tie_break = 7;
  ranks[1].tie_break = 3;
  for (const std::string& name : PolicyNames()) {
    if (name != "round_robin") {
      EXPECT_EQ(Choose(name, ranks).index, 1u) << name;
    }
  }
}

TEST(RoutingPolicy, NamesThosePoliciesThatThereAre) {
  EXPECT_THAT(std::string(MakePolicy("best").status().message()), testing::HasSubstr("full"));
}

}  // namespace
}  // namespace zp::routing
