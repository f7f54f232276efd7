#include "kvcache/block_index.h"

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::kvcache {
namespace {

using protocol::BlockHash;
using protocol::kBlockTokens;
using spec::TokenId;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAre;

using Tokens = std::vector<TokenId>;

// Each element stands for a block: 16 times the same token.
Tokens Blocks(const std::vector<TokenId>& tokens) {
  Tokens all;
  for (const TokenId token : tokens) {
    all.insert(all.end(), kBlockTokens, token);
  }
  return all;
}

class BlockIndexTest : public testing::Test {
 protected:
  // Holds the whole blocks of `tokens`, as far as there is room, as a pass would that ran it alone.
  // Returns how many of them were held before.
  static size_t Use(BlockIndex& index, const Tokens& tokens, const std::string& salt = "") {
    const std::vector<BlockHash> chain = kHasher.Chain(salt, tokens);
    std::vector<BlockId> blocks = index.Match(salt, tokens, chain);
    const size_t held_count = blocks.size();
    std::ranges::for_each(blocks, [&](BlockId block) { index.Pin(block); });
    for (size_t depth = held_count; depth < chain.size(); ++depth) {
      const BlockId block =
          index.Reserve({.name = chain[depth],
                         .parent = blocks.empty() ? kNoBlock : blocks.back(),
                         .salt = salt,
                         .tokens = std::span(tokens).subspan(depth * kBlockTokens, kBlockTokens)},
                        /*may_evict=*/true);
      if (block == kNoBlock) {
        break;
      }
      index.Publish(block);
      blocks.push_back(block);
    }
    std::ranges::for_each(blocks, [&](BlockId block) { index.Unpin(block); });
    return held_count;
  }

  static size_t HeldCount(const BlockIndex& index,
                          const Tokens& tokens,
                          const std::string& salt = "") {
    return index.Match(salt, tokens, kHasher.Chain(salt, tokens)).size();
  }

  inline static const protocol::BlockHasher kHasher{11};
};

TEST_F(BlockIndexTest, MatchesTheLongestPrefixInWholeBlocks) {
  BlockIndex index({.capacity_blocks = 8});
  Tokens tokens = Blocks({1, 2, 3});
  EXPECT_EQ(Use(index, tokens), 0u);
  EXPECT_EQ(Use(index, tokens), 3u);
  tokens.back() = 7;
  EXPECT_EQ(HeldCount(index, tokens), 2u);
  tokens.resize(20);
  EXPECT_EQ(HeldCount(index, tokens), 1u);
  EXPECT_EQ(HeldCount(index, Blocks({2, 3})), 0u);
}

TEST_F(BlockIndexTest, EvictsTheLeastRecentlyUsedLeafFirst) {
  BlockIndex index({.capacity_blocks = 4});
  Use(index, Blocks({1, 2}));
  Use(index, Blocks({3, 4}));
  Use(index, Blocks({5}));
  EXPECT_EQ(HeldCount(index, Blocks({1, 2})), 1u);
  EXPECT_EQ(HeldCount(index, Blocks({3, 4})), 2u);
  Use(index, Blocks({6}));  // now block 1 has no child and is the oldest
  EXPECT_EQ(HeldCount(index, Blocks({1})), 0u);
  EXPECT_EQ(HeldCount(index, Blocks({3, 4})), 2u);
}

TEST_F(BlockIndexTest, KeepsWhatSavesMoreFlopsLonger) {
  BlockIndex index({.capacity_blocks = 5, .first_block_flops = 1, .deeper_block_flops = 10});
  Use(index, Blocks({1, 2, 3, 4}));
  Use(index, Blocks({5}));
  Use(index, Blocks({6}));  // 5 was used later than 4, but lies at the beginning
  EXPECT_EQ(HeldCount(index, Blocks({1, 2, 3, 4})), 4u);
  EXPECT_EQ(HeldCount(index, Blocks({5})), 0u);
}

TEST_F(BlockIndexTest, AScanDoesNotWashOutWhatIsUsedAgainAndAgain) {
  BlockIndex index({.capacity_blocks = 8});
  for (int use = 0; use < 8; ++use) {
    Use(index, Blocks({1, 2}));
  }
  for (TokenId token = 100; token < 124; ++token) {  // four times the rest of the capacity
    Use(index, Blocks({token}));
  }
  EXPECT_EQ(HeldCount(index, Blocks({1, 2})), 2u);
  for (TokenId token = 200; token < 300; ++token) {  // but nothing stays for ever
    Use(index, Blocks({token}));
  }
  EXPECT_EQ(HeldCount(index, Blocks({1, 2})), 0u);
}

TEST_F(BlockIndexTest, WhatIsAwaitedGoesAfterAllThatIsNot) {
  BlockIndex index({.capacity_blocks = 4});
  Use(index, Blocks({1, 2}));
  const std::vector<BlockHash> awaited = kHasher.Chain("", Blocks({1, 2}));
  index.Await({.begun = awaited});
  index.Await({.begun = awaited});  // by two works
  index.Await({.ended = awaited});
  for (TokenId token = 100; token < 110; ++token) {
    Use(index, Blocks({token, token}));
  }
  EXPECT_EQ(HeldCount(index, Blocks({1, 2})), 2u);
  index.Await({.ended = awaited});
  Use(index, Blocks({200, 200}));
  EXPECT_EQ(HeldCount(index, Blocks({1, 2})), 0u);
}

TEST_F(BlockIndexTest, ABlockMayBeAwaitedBeforeItIsHeld) {
  BlockIndex index({.capacity_blocks = 2});
  index.Await({.begun = kHasher.Chain("", Blocks({1}))});
  Use(index, Blocks({1}));
  Use(index, Blocks({2}));
  Use(index, Blocks({3}));
  EXPECT_EQ(HeldCount(index, Blocks({1})), 1u);
}

TEST_F(BlockIndexTest, WhatMostWorksAwaitStaysLongest) {
  BlockIndex index({.capacity_blocks = 2});
  Use(index, Blocks({1}));
  Use(index, Blocks({2}));
  index.Await({.begun = kHasher.Chain("", Blocks({1}))});
  index.Await({.begun = kHasher.Chain("", Blocks({1}))});
  index.Await({.begun = kHasher.Chain("", Blocks({2}))});
  Use(index, Blocks({3}));
  EXPECT_EQ(HeldCount(index, Blocks({1})), 1u);
  EXPECT_EQ(HeldCount(index, Blocks({2})), 0u);
}

TEST_F(BlockIndexTest, WhatIsAwaitedMakesRoomIfAllIs) {
  BlockIndex index({.capacity_blocks = 1});
  Use(index, Blocks({1}));
  index.Await({.begun = kHasher.Chain("", Blocks({1}))});
  Use(index, Blocks({2}));
  EXPECT_EQ(HeldCount(index, Blocks({2})), 1u);
}

TEST_F(BlockIndexTest, NeverEvictsWhatIsPinnedOrHasAChild) {
  BlockIndex index({.capacity_blocks = 2});
  const Tokens tokens = Blocks({1, 2});
  Use(index, tokens);
  const std::vector<BlockId> blocks = index.Match("", tokens, kHasher.Chain("", tokens));
  index.Pin(blocks[1]);
  EXPECT_EQ(Use(index, Blocks({3})), 0u);
  EXPECT_EQ(HeldCount(index, Blocks({3})), 0u);
  index.Pin(blocks[1]);
  index.Unpin(blocks[1]);
  Use(index, Blocks({3}));  // pinned once more
  EXPECT_EQ(HeldCount(index, tokens), 2u);
  index.Unpin(blocks[1]);
  Use(index, Blocks({3}));
  EXPECT_EQ(HeldCount(index, Blocks({3})), 1u);
}

TEST_F(BlockIndexTest, HoldsNothingThatIsOnlyReserved) {
  BlockIndex index({.capacity_blocks = 2});
  const Tokens tokens = Blocks({1});
  const BlockHash name = kHasher.Chain("", tokens)[0];
  const BlockId block = index.Reserve({.name = name, .salt = "", .tokens = tokens}, true);
  EXPECT_EQ(HeldCount(index, tokens), 0u);
  EXPECT_EQ(index.Reserve({.name = name, .salt = "", .tokens = tokens}, true), kNoBlock);
  index.Unpin(block);
  index.Drop(block);
  EXPECT_TRUE(index.TakeEvents().empty());
  EXPECT_EQ(Use(index, tokens), 0u);
  EXPECT_THAT(index.TakeEvents().stored, ElementsAre(name));
}

TEST_F(BlockIndexTest, ACollisionOfNamesIsAMiss) {
  BlockIndex index({.capacity_blocks = 4});
  const Tokens mine = Blocks({1, 2});
  const Tokens other = Blocks({1, 3});
  Use(index, mine);
  const std::vector<BlockHash> stolen = kHasher.Chain("", mine);
  EXPECT_THAT(index.Match("", other, stolen), SizeIs(1));
  EXPECT_THAT(index.Match("somebody", mine, stolen), IsEmpty());
  // The second block's name alone does not make a prefix.
  EXPECT_THAT(index.Match("", Blocks({2}), std::span(stolen).subspan(1)), IsEmpty());
}

TEST_F(BlockIndexTest, SaltsDoNotShareAndKeepToTheirQuota) {
  BlockIndex index({.capacity_blocks = 8, .salt_fraction = 0.25});
  Use(index, Blocks({1, 2}));
  EXPECT_EQ(Use(index, Blocks({1, 2}), "a"), 0u);
  EXPECT_EQ(Use(index, Blocks({1, 2}), "b"), 0u);
  EXPECT_EQ(Use(index, Blocks({3, 4, 5}), "a"), 0u);  // takes the place of a's own blocks
  EXPECT_EQ(HeldCount(index, Blocks({3, 4, 5}), "a"), 2u);
  EXPECT_EQ(HeldCount(index, Blocks({1, 2}), "a"), 0u);
  EXPECT_EQ(HeldCount(index, Blocks({1, 2}), "b"), 2u);
  EXPECT_EQ(Use(index, Blocks({1, 2, 3, 4})), 2u);
  EXPECT_EQ(HeldCount(index, Blocks({1, 2, 3, 4})), 4u);  // without a salt there is no limit
}

TEST_F(BlockIndexTest, ATenantAtALimitOfOneBlockMayReplaceIt) {
  BlockIndex index({.capacity_blocks = 2, .salt_fraction = 0.5});
  Use(index, Blocks({1}), "a");
  Use(index, Blocks({2}), "a");
  EXPECT_EQ(HeldCount(index, Blocks({2}), "a"), 1u);
  EXPECT_EQ(index.held_blocks(), 1);
}

// The same rules in the plainest way: a map from the whole prefix to what is known of it, and a
// search through all of it for the next to go.
class NaiveIndex {
 public:
  NaiveIndex(int32_t capacity, double salt_fraction)
      : capacity_(capacity), salt_fraction_(salt_fraction) {}

  size_t Use(const std::string& salt, const Tokens& tokens) {
    std::vector<Key> path;
    size_t held_count = 0;
    for (size_t end = kBlockTokens; end <= tokens.size(); end += kBlockTokens) {
      const Key key{salt, Tokens(tokens.begin(), tokens.begin() + static_cast<int64_t>(end))};
      const bool is_held = entries_.contains(key);
      if (!is_held && !MakeRoom(salt, path)) {
        break;
      }
      held_count += is_held && held_count == path.size() ? 1 : 0;
      path.push_back(key);
      Entry& entry = entries_[key];
      entry.uses = std::min(entry.uses + 1, 8);
      entry.priority = clock_ + entry.uses * (2.0 + 3.0 * static_cast<double>(path.size() - 1));
      entry.last_use = ++time_;
    }
    return held_count;
  }

  // All blocks of the prefix, by one work more or less.
  void Await(const std::string& salt, const Tokens& tokens, int count) {
    for (size_t end = kBlockTokens; end <= tokens.size(); end += kBlockTokens) {
      awaited_[{salt, Tokens(tokens.begin(), tokens.begin() + static_cast<int64_t>(end))}] += count;
    }
  }

  size_t size() const { return entries_.size(); }

 private:
  using Key = std::pair<std::string, Tokens>;
  struct Entry {
    int uses = 0;
    double priority = 0;
    int64_t last_use = 0;
  };

  bool MakeRoom(const std::string& salt, const std::vector<Key>& pinned) {
    const auto mine = std::ranges::count(entries_, salt, [](auto& e) { return e.first.first; });
    const bool is_within = salt.empty() || mine < static_cast<int>(salt_fraction_ * capacity_);
    if (is_within && std::ssize(entries_) < capacity_) {
      return true;
    }
    auto victim = entries_.end();
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      const auto rank = [&](const auto& e) {
        return std::tuple(awaited_[e.first], e.second.priority, e.second.last_use);
      };
      if (HasChild(entry->first) || std::ranges::count(pinned, entry->first) > 0 ||
          (!is_within && entry->first.first != salt)) {
        continue;
      }
      if (victim == entries_.end() || rank(*entry) < rank(*victim)) {
        victim = entry;
      }
    }
    if (victim == entries_.end()) {
      return false;
    }
    clock_ = std::max(clock_, victim->second.priority);
    entries_.erase(victim);
    return true;
  }

  bool HasChild(const Key& key) const {
    return std::ranges::any_of(entries_, [&](const auto& entry) {
      const auto& [salt, tokens] = entry.first;
      return salt == key.first && tokens.size() == key.second.size() + kBlockTokens &&
             std::equal(key.second.begin(), key.second.end(), tokens.begin());
    });
  }

  const int32_t capacity_;
  const double salt_fraction_;
  std::map<Key, Entry> entries_;
  std::map<Key, int> awaited_;
  double clock_ = 0;
  int64_t time_ = 0;
};

TEST_F(BlockIndexTest, DoesWhatItsNaiveTwinDoes) {
  const uint32_t seed = std::random_device{}();
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    const auto capacity = 1 + static_cast<int32_t>(random() % 24);
    // A quota of at least one block, so that the twin may round as it likes.
    const double fraction = random() % 2 == 0 ? 1.0 : std::max(0.5, 1.0 / capacity);
    BlockIndex index({.capacity_blocks = capacity,
                      .salt_fraction = fraction,
                      .first_block_flops = 2,
                      .deeper_block_flops = 3});
    NaiveIndex twin(capacity, fraction);
    std::set<std::pair<uint64_t, uint64_t>> replayed;
    std::vector<std::pair<std::string, Tokens>> waiting;
    for (int step = 0; step < 300; ++step) {
      const std::string salt = std::vector<std::string>{"", "a", "b"}[random() % 3];
      std::vector<TokenId> blocks(random() % 6);
      std::ranges::generate(blocks, [&] { return static_cast<TokenId>(random() % 3); });
      Tokens tokens = Blocks(blocks);
      tokens.resize(tokens.size() + random() % kBlockTokens);
      if (random() % 4 == 0) {
        index.Await({.begun = kHasher.Chain(salt, tokens)});
        twin.Await(salt, tokens, 1);
        waiting.emplace_back(salt, tokens);
        continue;
      }
      if (random() % 4 == 0 && !waiting.empty()) {
        std::swap(waiting[random() % waiting.size()], waiting.back());
        const auto& [whose, what] = waiting.back();
        index.Await({.ended = kHasher.Chain(whose, what)});
        twin.Await(whose, what, -1);
        waiting.pop_back();
      }
      ASSERT_EQ(Use(index, tokens, salt), twin.Use(salt, tokens)) << "seed " << seed;
      ASSERT_EQ(static_cast<size_t>(index.held_blocks()), twin.size()) << "seed " << seed;
      const protocol::CacheEvents events = index.TakeEvents();
      for (const BlockHash& name : events.removed) {
        ASSERT_EQ(replayed.erase({name.high, name.low}), 1u) << "seed " << seed;
      }
      for (const BlockHash& name : events.stored) {
        ASSERT_TRUE(replayed.insert({name.high, name.low}).second) << "seed " << seed;
      }
      ASSERT_EQ(replayed.size(), twin.size()) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace zp::kvcache
