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

TEST(RoutingPolicy, FullKeepsTheOwnerUpToSaturation) {
  const Choice below = Choose("full", {Rank(0, 0, 0, 50), Rank(1, 1, 80, 10, 800)});
  EXPECT_EQ(below.index, 1u);
  EXPECT_EQ(below.reason, Reason::kOwner);
  EXPECT_NE(Choose("full", {Rank(0, 0, 0, 50), Rank(1, 1, 95, 10, 800)}).index, 1u);
}

TEST(RoutingPolicy, FullFillsAnActiveRankBeforeItWakesAnother) {
  const Choice fill = Choose("full", {Rank(0, 0, 0, 50), Rank(1, 1, 30, 50), Rank(2, 1, 40, 50)});
  EXPECT_EQ(fill.index, 2u);
  EXPECT_EQ(fill.reason, Reason::kFill);
  const Choice least = Choose("full", {Rank(0, 0, 0, 50), Rank(1, 1, 60, 50)});
  EXPECT_EQ(least.index, 0u);
  EXPECT_EQ(least.reason, Reason::kLeast);
}

// Of several that hold the prefix only one is the owner.
TEST(RoutingPolicy, FullFillsARankThatHoldsThePrefixBeforeAFullerOneThatDoesNot) {
  const std::vector<RankView> ranks = {
      Rank(0, 1, 98, 10, 800), Rank(1, 1, 20, 10, 800), Rank(2, 1, 45, 50), Rank(3, 0, 0, 50)};
  const Choice choice = Choose("full", ranks);
  EXPECT_EQ(choice.index, 1u);
  EXPECT_EQ(choice.reason, Reason::kFill);
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
