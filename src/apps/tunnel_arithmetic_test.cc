#include "apps/tunnel_arithmetic.h"

#include "experts/expert_catalog.h"
#include "experts/placement.h"
#include "gtest/gtest.h"
#include "spec/flops.h"
#include "spec/model_shapes.h"
#include "spec/saturation.h"

namespace zp::apps {
namespace {

spec::ModelSpec Shape(int32_t model_dim = 2048) {
  spec::ModelSpec spec = spec::WithLayerCount(*spec::FindModelShape("qwen3-30b-a3b"), 3);
  spec.vocab_count = 8192;
  spec.model_dim = model_dim;
  return spec;
}

TEST(TunnelArithmeticTest, KnowsTheBalancesByNameAndByNumber) {
  EXPECT_DOUBLE_EQ(*BytesPerFlop("h100-nvlink", 2), 1.0 / 2200);
  EXPECT_DOUBLE_EQ(*BytesPerFlop("pcie5", 2), 1.0 / 15000);
  EXPECT_DOUBLE_EQ(*BytesPerFlop("0.001", 2), 0.001);
  for (const char* wrong : {"", "nvlink", "0", "-1", "nan", "inf"}) {
    EXPECT_EQ(BytesPerFlop(wrong, 2).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(TunnelArithmeticTest, CountsCopiesToOtherRanksAsTheDesignDoes) {
  EXPECT_NEAR(CopiesPerToken(2, 8), 1.0, 0.005);
  EXPECT_NEAR(CopiesPerToken(4, 8), 2.7, 0.005);
  EXPECT_NEAR(CopiesPerToken(8, 8), 4.6, 0.05);
  EXPECT_DOUBLE_EQ(CopiesPerToken(8, 1), 7.0 / 8);
}

TEST(TunnelArithmeticTest, ExpectsTheRatioOfTheFormula) {
  const spec::ModelSpec spec = Shape();
  const double flops_per_s = 0.8 * 2200e6;
  const double bytes = 4 * 2048 * CopiesPerToken(2, 8);
  const double expected = 1 + bytes / 1e6 * flops_per_s / spec::LayerFlopsPerToken(spec, 128);
  EXPECT_DOUBLE_EQ(IdealRatio(spec, 2, {.ranks = 2}, flops_per_s, 1e6, 128), expected);
  EXPECT_NEAR(expected, 1.125, 0.005);
  // Two copies on four ranks: dispatch within pairs.
  EXPECT_DOUBLE_EQ(IdealRatio(spec, 2, {.ranks = 4, .redundancy = 2}, flops_per_s, 1e6, 128),
                   expected);
}

// Both sides of either comparison grow with the model's width alone, but for attention's scores.
TEST(TunnelArithmeticTest, HalfTheModelDimKeepsSaturationAndRatio) {
  const auto saturation = [](const spec::ModelSpec& spec) {
    return spec::SaturationTokens(
        MissingBytes(spec, 2, {.ranks = 4}) / 1e8, 2.2e11, spec::LayerFlopsPerToken(spec, 128));
  };
  EXPECT_NEAR(saturation(Shape(1024)) / saturation(Shape(2048)), 1, 0.03);
  const double half = IdealRatio(Shape(1024), 2, {.ranks = 4}, 2.2e11, 1e8, 128);
  const double whole = IdealRatio(Shape(2048), 2, {.ranks = 4}, 2.2e11, 1e8, 128);
  EXPECT_NEAR((half - 1) / (whole - 1), 1, 0.03);
}

// Elements of four bytes over links of twice the bytes.
TEST(TunnelArithmeticTest, WiderElementsKeepSaturationRatioAndBalance) {
  const spec::ModelSpec spec = Shape();
  const double flops_per_s = 4e11;
  const auto link_of = [&](int64_t element_bytes) {
    return flops_per_s * *BytesPerFlop("h100-nvlink", element_bytes);
  };
  EXPECT_DOUBLE_EQ(link_of(4), 2 * link_of(2));
  EXPECT_DOUBLE_EQ(*BytesPerFlop("0.001", 4), 0.002);
  EXPECT_DOUBLE_EQ(MissingBytes(spec, 4, {.ranks = 4}) / link_of(4),
                   MissingBytes(spec, 2, {.ranks = 4}) / link_of(2));
  EXPECT_DOUBLE_EQ(IdealRatio(spec, 4, {.ranks = 4}, 0.8 * flops_per_s, link_of(4), 128),
                   IdealRatio(spec, 2, {.ranks = 4}, 0.8 * flops_per_s, link_of(2), 128));
  EXPECT_EQ(MemoryFor(spec, {.placement = {.ranks = 4}, .element_bytes = 4}).shared_bytes,
            2 * MemoryFor(spec, {.placement = {.ranks = 4}, .element_bytes = 2}).shared_bytes);
}

TEST(TunnelArithmeticTest, GivesRanksThatShareACoreEqualPartsOfIt) {
  EXPECT_DOUBLE_EQ(CoresPerRank(2, 2), 1);
  EXPECT_DOUBLE_EQ(CoresPerRank(2, 64), 1);
  EXPECT_DOUBLE_EQ(CoresPerRank(4, 2), 0.95 / 2);
  EXPECT_DOUBLE_EQ(CoresPerRank(8, 2), 0.95 / 4);
  EXPECT_DOUBLE_EQ(CoresPerRank(3, 2), 0.95 / 2);  // one core has two of them
}

TEST(TunnelArithmeticTest, DispatchesAsManyRowsAsGiveAnExpertEnough) {
  EXPECT_EQ(DispatchedRows(2, false), kTunnelChunkTokens);
  EXPECT_EQ(DispatchedRows(4, false), 4096);
  EXPECT_EQ(DispatchedRows(8, false), 2048);
  EXPECT_EQ(DispatchedRows(64, false), 2048);
  EXPECT_EQ(DispatchedRows(2, true), 2048);
}

// Three layers and windows of two slots: layers * kept + slots * (experts - kept).
experts::Placement PlacementOf(const TunnelPlacement& tunnel, int32_t expert_count) {
  constexpr size_t kExpertBytes = 4096;
  const size_t kept = KeptExperts(expert_count, tunnel);
  return *experts::Placement::Compute(
      {.layer_has_experts = {true, true, true},
       .expert_count = expert_count,
       .expert_bytes = kExpertBytes},
      std::vector<experts::HostBudget>(
          tunnel.ranks, {.expert_memory_bytes = (2 * expert_count + kept) * kExpertBytes}),
      /*window_slot_count=*/2,
      tunnel.redundancy);
}

TEST(TunnelArithmeticTest, DispatchesWithinSetsOfRanksThatKeepAllExpertsEvenly) {
  for (const TunnelPlacement& tunnel : {TunnelPlacement{2, 1}, {4, 1}, {4, 2}, {8, 2}, {8, 4}}) {
    const experts::Placement placement = PlacementOf(tunnel, 128);
    for (int32_t rank = 0; rank < tunnel.ranks; ++rank) {
      std::vector<int32_t> experts_of(tunnel.ranks);
      const std::vector<int32_t> owners = DispatchOwners(128, tunnel, rank);
      for (int32_t expert = 0; expert < 128; ++expert) {
        EXPECT_TRUE(placement.Keeps(owners[expert], 0, expert)) << tunnel.ranks << ": " << expert;
        EXPECT_EQ(placement.Keeps(rank, 0, expert), owners[expert] == rank) << expert;
        EXPECT_EQ(owners[expert] / tunnel.set_ranks(), rank / tunnel.set_ranks());
        ++experts_of[owners[expert]];
      }
      EXPECT_EQ(experts_of[rank], 128 / tunnel.set_ranks());
    }
    EXPECT_EQ(MissingBytes(Shape(), 2, tunnel),
              static_cast<double>((128 - KeptExperts(128, tunnel)) * 2 * 3 * 2048 * 768));
  }
}

TEST(TunnelArithmeticTest, CountsMemoryOncePerRankAndOnceForAll) {
  const int64_t layer_bytes = int64_t{128} * 3 * 2048 * 768 * 2;
  TunnelUse use = {.placement = {.ranks = 8}, .pass_tokens = 1, .has_resident = true};
  const TunnelMemory with = MemoryFor(Shape(), use);
  EXPECT_EQ(with.shared_bytes, 3 * layer_bytes);
  EXPECT_EQ(with.total_bytes(8), 8 * with.rank_bytes + with.shared_bytes);
  use.gathers = false;
  const TunnelMemory without_window = MemoryFor(Shape(), use);
  EXPECT_EQ(with.rank_bytes - without_window.rank_bytes, 2 * layer_bytes * 7 / 8);
  use.has_resident = false;
  EXPECT_EQ(MemoryFor(Shape(), use).shared_bytes, 0);
  use.dispatches_overlapped = true;
  EXPECT_GT(MemoryFor(Shape(), use).rank_bytes, without_window.rank_bytes);
  use.pass_tokens = 10000;
  EXPECT_GT(MemoryFor(Shape(), use).rank_bytes,
            without_window.rank_bytes + int64_t{10000} * 2048 * 10);
}

}  // namespace
}  // namespace zp::apps
