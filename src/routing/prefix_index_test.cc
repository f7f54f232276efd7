#include "routing/prefix_index.h"

#include <map>
#include <random>
#include <set>

#include "gtest/gtest.h"
#include "protocol/work_cost.h"
#include "routing/held_prefixes.h"
#include "routing/testing.h"
#include "routing/work_profile.h"

namespace zp::routing {
namespace {

using protocol::BlockHash;

TEST(PrefixIndex, KnowsWhatANaiveTwinKnows) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  constexpr RankSlot kSlots = 70;  // two groups
  constexpr uint64_t kBlocks = 40;
  PrefixIndex index;
  std::vector<std::set<uint64_t>> held(kSlots);
  std::vector<std::multiset<uint64_t>> expected(kSlots);
  const auto name = [](uint64_t number) { return BlockHash{.high = 1, .low = number}; };
  for (int step = 0; step < 20'000; ++step) {
    const auto slot = static_cast<RankSlot>(random() % kSlots);
    const uint64_t block = random() % kBlocks;
    switch (random() % 7) {
      case 0:
      case 1:
        index.Apply(slot, {.stored = {name(block)}});
        held[slot].insert(block);
        break;
      case 2:
        index.Apply(slot, {.removed = {name(block)}});
        held[slot].erase(block);
        break;
      case 3: {
        const std::vector<BlockHash> blocks = {name(block)};
        index.Expect(slot, blocks);
        expected[slot].insert(block);
        break;
      }
      case 4:
        if (const auto one = expected[slot].find(block); one != expected[slot].end()) {
          const std::vector<BlockHash> blocks = {name(block)};
          index.DropExpected(slot, blocks);
          expected[slot].erase(one);
        }
        break;
      case 5:
        if (random() % 20 == 0) {
          index.Apply(slot, {.is_cleared = true, .stored = {name(block)}});
          held[slot] = {block};
        }
        break;
      default:
        break;
    }
    const uint64_t asked = random() % kBlocks;
    const auto other = static_cast<RankSlot>(random() % kSlots);
    if (other / PrefixIndex::kGroupRanks < index.group_count()) {
      const PrefixIndex::Mask holders =
          index.Holders(other / PrefixIndex::kGroupRanks, name(asked));
      ASSERT_EQ((holders >> (other % PrefixIndex::kGroupRanks)) & 1,
                held[other].contains(asked) || expected[other].contains(asked) ? 1u : 0u)
          << step;
    }
    ASSERT_EQ(index.IsHeld(other, name(asked)), held[other].contains(asked)) << step;
    ASSERT_EQ(index.held_block_count(other), std::ssize(held[other])) << step;
  }
  for (RankSlot slot = 0; slot < kSlots; ++slot) {
    index.Clear(slot);
    for (const uint64_t block : expected[slot]) {
      const std::vector<BlockHash> blocks = {name(block)};
      index.DropExpected(slot, blocks);
    }
  }
  EXPECT_EQ(index.block_count(), 0);
}

// The definition is protocol::CostOf, with what each rank holds of each sequence.
TEST(HeldPrefixes, CostIsThatOfTheDefinition) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const spec::ModelSpec spec = TestSpec();
  const protocol::BlockHasher hasher(5);
  const TokenPrice price(spec);
  constexpr int32_t kSlots = 67;
  HeldPrefixes held;
  for (int round = 0; round < 50; ++round) {
    PrefixIndex index;
    std::vector<std::set<std::pair<uint64_t, uint64_t>>> names(kSlots);
    for (int works = 0; works < 200; ++works) {  // some hold a beginning, some a gap
      const auto slot = static_cast<RankSlot>(random() % kSlots);
      for (const BlockHash& block : ProfileOf(spec, hasher, RandomWork(random)).blocks) {
        if (random() % 8 != 0) {
          index.Apply(slot, {.stored = {block}});
          names[slot].emplace(block.high, block.low);
        }
      }
    }
    const protocol::Work work = RandomWork(random);
    const WorkProfile profile = ProfileOf(spec, hasher, work);
    EXPECT_NEAR(profile.flops, protocol::CostOf(spec, work).flops, 1);
    EXPECT_EQ(profile.computed_tokens, protocol::CostOf(spec, work).tokens);
    held.Look(index, price, profile, kSlots);
    for (RankSlot slot = 0; slot < kSlots; ++slot) {
      std::vector<int32_t> held_tokens;
      for (const protocol::Sequence& sequence : work.sequences) {
        int32_t tokens = 0;
        for (const BlockHash& block : hasher.Chain("", sequence.tokens)) {
          if (!names[slot].contains({block.high, block.low})) {
            break;
          }
          tokens += protocol::kBlockTokens;
        }
        held_tokens.push_back(tokens);
      }
      const protocol::WorkCost cost = protocol::CostOf(spec, work, held_tokens);
      ASSERT_EQ(profile.computed_tokens - held.tokens(slot), cost.tokens);
      ASSERT_NEAR((profile.flops - held.flops(slot)) / cost.flops, 1, 1e-9);
    }
  }
}

}  // namespace
}  // namespace zp::routing
