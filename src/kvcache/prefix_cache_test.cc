#include "kvcache/prefix_cache.h"

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::kvcache {
namespace {

using protocol::kBlockTokens;
using protocol::Sequence;
using spec::TokenId;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr size_t kLayerBlockBytes = 64;

spec::ModelSpec SmallSpec() {
  spec::ModelSpec spec;
  spec.layer_count = 3;
  spec.model_dim = 8;
  spec.query_head_count = 2;
  spec.kv_head_count = 1;
  spec.head_dim = 4;
  spec.dense_ffn_dim = 16;
  spec.layer_is_moe = {false, false, false};
  return spec;
}

std::unique_ptr<PrefixCache> MakeCache(int64_t blocks, double salt_fraction = 1.0) {
  auto cache = PrefixCache::Create(SmallSpec(),
                                   {.budget_bytes = blocks * 3 * int64_t{kLayerBlockBytes},
                                    .salt_fraction = salt_fraction,
                                    .layer_block_bytes = kLayerBlockBytes});
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

// Asks about its last token.
Sequence SequenceOf(std::vector<TokenId> tokens) {
  const auto last = static_cast<int32_t>(tokens.size()) - 1;
  return {.tokens = std::move(tokens), .rows = {{.position = last, .columns = {}}}};
}

Sequence SequenceOfBlocks(const std::vector<TokenId>& blocks) {
  std::vector<TokenId> tokens;
  for (const TokenId token : blocks) {
    tokens.insert(tokens.end(), kBlockTokens, token);
  }
  return SequenceOf(std::move(tokens));
}

std::unique_ptr<PrefixCache::Pass> Begin(PrefixCache& cache,
                                         const std::vector<Sequence>& sequences,
                                         std::string_view salt = "") {
  std::vector<CachedSequence> cached;
  for (const Sequence& sequence : sequences) {
    cached.push_back({&sequence, salt});
  }
  return cache.Begin(cached);
}

// Runs a pass in which all are answered; how many blocks of each were held.
std::vector<int32_t> RunAnswered(PrefixCache& cache,
                                 const std::vector<Sequence>& sequences,
                                 std::string_view salt = "") {
  const auto pass = Begin(cache, sequences, salt);
  std::vector<int32_t> held;
  for (size_t i = 0; i < sequences.size(); ++i) {
    held.push_back(pass->held_count(i));
  }
  pass->Publish(std::vector<uint8_t>(sequences.size(), 1));
  return held;
}

TEST(PrefixCache, HoldsWhatAnEarlierPassWentThrough) {
  const auto cache = MakeCache(8);
  const std::vector<Sequence> first = {SequenceOfBlocks({1, 2, 3}), SequenceOfBlocks({1, 2, 4})};
  EXPECT_THAT(RunAnswered(*cache, first), ElementsAre(0, 0));
  EXPECT_EQ(cache->held_bytes(), 4 * 3 * int64_t{kLayerBlockBytes});
  EXPECT_THAT(RunAnswered(*cache, {SequenceOfBlocks({1, 2, 5}), SequenceOfBlocks({1, 2, 3, 6})}),
              ElementsAre(2, 3));
}

TEST(PrefixCache, SequencesOfAPassShareTheirBlocks) {
  const auto cache = MakeCache(8);
  const std::vector<Sequence> sequences = {SequenceOfBlocks({1, 2}), SequenceOfBlocks({1, 3})};
  const auto pass = Begin(*cache, sequences);
  EXPECT_EQ(pass->blocks().size(), 3u);
  EXPECT_EQ(pass->path(0)[0], pass->path(1)[0]);
  EXPECT_NE(pass->path(0)[1], pass->path(1)[1]);
}

TEST(PrefixCache, APassThatIsNotPublishedLeavesNothing) {
  const auto cache = MakeCache(4);
  const std::vector<Sequence> sequences = {SequenceOfBlocks({1, 2})};
  Begin(*cache, sequences).reset();
  EXPECT_EQ(cache->held_bytes(), 0);
  EXPECT_THAT(RunAnswered(*cache, sequences), ElementsAre(0));
  EXPECT_THAT(RunAnswered(*cache, sequences), ElementsAre(2));
}

TEST(PrefixCache, KeepsOnlyWhatAnAnswerVouchesFor) {
  const auto cache = MakeCache(8);
  std::vector<Sequence> sequences = {
      SequenceOfBlocks({1, 2, 3}), SequenceOfBlocks({1, 2, 4}), SequenceOfBlocks({5, 6, 7})};
  sequences[2].rows[0].position = 40;  // says nothing of the third block's end
  const auto run = [&](std::vector<uint8_t> is_answered) {
    const auto pass = Begin(*cache, sequences);
    const std::vector<int32_t> held = {
        pass->held_count(0), pass->held_count(1), pass->held_count(2)};
    pass->Publish(is_answered);
    return held;
  };
  EXPECT_THAT(run({0, 1, 1}), ElementsAre(0, 0, 0));
  EXPECT_THAT(run({1, 1, 1}), ElementsAre(2, 3, 2));
  EXPECT_THAT(run({1, 1, 1}), ElementsAre(3, 3, 2));
}

TEST(PrefixCache, APassTooLargeForItKeepsWhatIsSharedAndReplacesAtMostHalf) {
  const auto cache = MakeCache(8);
  RunAnswered(*cache, {SequenceOfBlocks({50, 51, 52, 53}), SequenceOfBlocks({60, 61, 62, 63})});
  std::vector<Sequence> large;
  for (TokenId token = 100; token < 120; ++token) {
    large.push_back(SequenceOfBlocks({1, 2, token, token + 1}));
  }
  RunAnswered(*cache, large);
  const std::vector<int32_t> held = RunAnswered(*cache, large);
  EXPECT_EQ(std::ranges::count(held, 3), 2) << "the prompt and the first blocks that come after";
  EXPECT_EQ(std::ranges::count(held, 2), 18);
}

TEST(PrefixCache, APassBeyondTheBudgetStillHasItsHeldBlocks) {
  const auto cache = MakeCache(2);
  RunAnswered(*cache, {SequenceOfBlocks({1, 2})});
  EXPECT_THAT(RunAnswered(*cache, {SequenceOfBlocks({1, 2, 3, 4}), SequenceOfBlocks({5, 6})}),
              ElementsAre(2, 0));
}

TEST(PrefixCache, TenantsShareNothing) {
  const auto cache = MakeCache(8, 0.25);
  EXPECT_THAT(RunAnswered(*cache, {SequenceOfBlocks({1, 2, 3})}, "a"), ElementsAre(0));
  EXPECT_THAT(RunAnswered(*cache, {SequenceOfBlocks({1, 2, 3})}, "b"), ElementsAre(0));
  EXPECT_THAT(RunAnswered(*cache, {SequenceOfBlocks({1, 2, 3})}), ElementsAre(0));
  EXPECT_THAT(RunAnswered(*cache, {SequenceOfBlocks({1, 2, 3})}, "a"), ElementsAre(2));
  const std::vector<Sequence> same = {SequenceOfBlocks({9}), SequenceOfBlocks({9})};
  const auto pass = cache->Begin(std::vector<CachedSequence>{{&same[0], "a"}, {&same[1], "b"}});
  EXPECT_NE(pass->path(0)[0], pass->path(1)[0]);
}

TEST(PrefixCache, SaysWhatAModelNeeds) {
  const auto too_small = PrefixCache::Create(
      SmallSpec(), {.budget_bytes = 100, .layer_block_bytes = kLayerBlockBytes});
  EXPECT_EQ(too_small.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(base::MessageOf(too_small.status()), HasSubstr("16 tokens of this model take 192"));
  const auto no_quota = PrefixCache::Create(
      SmallSpec(),
      {.budget_bytes = 1000, .salt_fraction = 0, .layer_block_bytes = kLayerBlockBytes});
  EXPECT_THAT(base::MessageOf(no_quota.status()), HasSubstr("above 0 and at most 1"));
}

// What lies in a block is the prefix that the path says, whatever came and went: each pass reads
// back what the passes before wrote.
TEST(PrefixCache, APathAlwaysLeadsToItsOwnPrefix) {
  const uint32_t seed = std::random_device{}();
  std::mt19937 random(seed);
  const auto cache = MakeCache(12, 0.5);
  std::set<std::pair<uint64_t, uint64_t>> replayed;
  for (int step = 0; step < 500; ++step) {
    std::vector<Sequence> sequences;
    std::vector<std::string> salts;
    for (size_t i = 0; i < 1 + random() % 5; ++i) {
      std::vector<TokenId> blocks(1 + random() % 6);
      std::ranges::generate(blocks, [&] { return static_cast<TokenId>(random() % 3); });
      sequences.push_back(SequenceOfBlocks(blocks));
      sequences.back().tokens.resize(sequences.back().tokens.size() - random() % 3);
      sequences.back().rows[0].position =
          static_cast<int32_t>(random() % sequences.back().tokens.size());
      salts.push_back(random() % 2 == 0 ? "" : "a");
    }
    std::vector<CachedSequence> cached;
    for (size_t i = 0; i < sequences.size(); ++i) {
      cached.push_back({&sequences[i], salts[i]});
    }
    const auto pass = cache->Begin(cached);
    std::vector<uint8_t> is_answered;
    const protocol::BlockHasher hasher(5);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto chain = hasher.Chain(salts[i], sequences[i].tokens);
      ASSERT_LE(pass->path(i).size(), chain.size());
      for (size_t depth = 0; depth < pass->path(i).size(); ++depth) {
        for (int layer = 0; layer < 3; ++layer) {
          auto* mark = reinterpret_cast<protocol::BlockHash*>(pass->blocks()[pass->path(i)[depth]] +
                                                              layer * kLayerBlockBytes);
          if (static_cast<int32_t>(depth) < pass->held_count(i)) {
            ASSERT_EQ(*mark, chain[depth]) << "seed " << seed;
          } else {
            *mark = chain[depth];
          }
        }
      }
      is_answered.push_back(random() % 4 == 0 ? 0 : 1);
    }
    if (random() % 5 != 0) {
      pass->Publish(is_answered);
    }
    const protocol::CacheEvents events = cache->TakeEvents();
    for (const protocol::BlockHash& name : events.removed) {
      ASSERT_EQ(replayed.erase({name.high, name.low}), 1u) << "seed " << seed;
    }
    for (const protocol::BlockHash& name : events.stored) {
      ASSERT_TRUE(replayed.insert({name.high, name.low}).second) << "seed " << seed;
    }
    ASSERT_EQ(static_cast<int32_t>(replayed.size()), cache->index().held_blocks());
  }
}

}  // namespace
}  // namespace zp::kvcache
