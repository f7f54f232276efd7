#include "experts/placement.h"

#include <random>
#include <set>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::experts {
namespace {

using testing::HasSubstr;

constexpr size_t kBlob = 4096;

ExpertCatalog Catalog(int32_t layers, int32_t experts) {
  return {.layer_has_experts = std::vector<bool>(layers, true),
          .expert_count = experts,
          .expert_bytes = kBlob};
}

int32_t Copies(const Placement& placement, LayerIndex layer, int32_t expert) {
  int32_t copies = 0;
  for (int32_t host = 0; host < placement.host_count(); ++host) {
    copies += placement.Keeps(host, layer, expert) ? 1 : 0;
  }
  return copies;
}

TEST(Placement, OneHostWithRoomForAllMissesNothing) {
  const Placement placement = Placement::AllResident(Catalog(3, 7));
  EXPECT_EQ(placement.max_missing_count(0), 0);
  EXPECT_EQ(placement.resident_count(0), 21);
  std::set<int64_t> places;
  for (LayerIndex layer = 0; layer < 3; ++layer) {
    for (int32_t expert = 0; expert < 7; ++expert) {
      places.insert(placement.ResidentIndex(0, layer, expert));
    }
  }
  EXPECT_EQ(places.size(), 21u);
  EXPECT_EQ(*places.begin(), 0);
  EXPECT_EQ(*places.rbegin(), 20);
}

TEST(Placement, BudgetHoldsWhatIsKeptAndTheWindows) {
  std::mt19937 random(20261124);
  for (int round = 0; round < 300; ++round) {
    const ExpertCatalog catalog =
        Catalog(3 + static_cast<int32_t>(random() % 30), 1 + static_cast<int32_t>(random() % 130));
    const int32_t ranks = 1 + static_cast<int32_t>(random() % 3);
    const int32_t slots = 2 + static_cast<int32_t>(random() % 2);
    const size_t budget = random() % (catalog.total_bytes() + 10 * kBlob);
    const auto placement = Placement::Compute(
        catalog, {{.expert_memory_bytes = budget, .rank_count = ranks}}, slots, 0);
    if (!placement.ok()) {
      EXPECT_EQ(placement.status().code(), absl::StatusCode::kResourceExhausted);
      continue;
    }
    const size_t used = kBlob * (placement->resident_count(0) +
                                 size_t{1} * ranks * slots * placement->max_missing_count(0));
    EXPECT_LE(used, budget);
    // Nothing is wasted: one more expert in every layer would not fit.
    if (placement->max_missing_count(0) > 0) {
      EXPECT_GT(used + kBlob * (catalog.moe_layer_count() + 1), budget);
    }
    for (LayerIndex layer = 0; layer < catalog.layer_count(); ++layer) {
      const auto missing = static_cast<int32_t>(placement->Missing(0, layer).size());
      EXPECT_LE(placement->max_missing_count(0) - missing, 1);
    }
  }
}

TEST(Placement, EqualHostsShareEvenlyAndEveryExpertHasItsCopies) {
  for (const int32_t hosts : {2, 3, 4, 8}) {
    for (const int32_t redundancy : {1, 2}) {
      const ExpertCatalog catalog = Catalog(20, 60);
      const size_t kept = (60 * redundancy + hosts - 1) / hosts;
      const size_t budget = kBlob * (20 * kept + 2 * (60 - kept));
      const auto placement = Placement::Compute(
          catalog, std::vector<HostBudget>(hosts, {.expert_memory_bytes = budget}), 2, redundancy);
      ASSERT_TRUE(placement.ok()) << placement.status();
      for (int32_t expert = 0; expert < 60; ++expert) {
        const int32_t copies = Copies(*placement, 5, expert);
        EXPECT_GE(copies, redundancy);
        EXPECT_LE(copies, redundancy + 1);
      }
    }
  }
}

TEST(Placement, HostsBeginToFetchAtDifferentPeers) {
  const size_t budget = kBlob * (20 * 32 + 2 * 96);
  const auto placement = Placement::Compute(
      Catalog(20, 128), std::vector<HostBudget>(4, {.expert_memory_bytes = budget}), 2, 1);
  ASSERT_TRUE(placement.ok()) << placement.status();
  std::set<int32_t> firsts;
  for (int32_t host = 0; host < 4; ++host) {
    firsts.insert(placement->Missing(host, 0).front());
  }
  EXPECT_EQ(firsts.size(), 4u);
}

TEST(Placement, LayersWithoutExpertsTakeNoRoom) {
  ExpertCatalog catalog = Catalog(5, 4);
  catalog.layer_has_experts[0] = catalog.layer_has_experts[3] = false;
  const Placement placement = Placement::AllResident(catalog);
  EXPECT_EQ(placement.resident_count(0), 12);
  EXPECT_TRUE(placement.Missing(0, 3).empty());
  EXPECT_FALSE(placement.Keeps(0, 3, 0));
}

TEST(Placement, TooLittleMemorySaysHowMuchWouldDo) {
  const auto placement =
      Placement::Compute(Catalog(10, 8), {{.expert_memory_bytes = 15 * kBlob}}, 2, 0);
  ASSERT_EQ(placement.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(base::MessageOf(placement.status()), HasSubstr("64"));  // 16 blobs are 64 KiB
}

TEST(Placement, RefusesWhatItCannotPromise) {
  const ExpertCatalog catalog = Catalog(10, 8);
  const HostBudget small{.expert_memory_bytes = 30 * kBlob};
  EXPECT_THAT(base::MessageOf(Placement::Compute(catalog, {small, small}, 2, 1).status()),
              HasSubstr("redundancy is 1"));
  EXPECT_THAT(base::MessageOf(Placement::Compute(catalog, {small}, 1, 0).status()),
              HasSubstr("at least 2"));
  EXPECT_FALSE(Placement::Compute(catalog, {}, 2, 0).ok());
}

}  // namespace
}  // namespace zp::experts
