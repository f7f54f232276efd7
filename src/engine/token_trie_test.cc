#include "engine/token_trie.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace zp::engine {
namespace {

using protocol::Sequence;
using protocol::TokenId;

std::vector<Sequence> SequencesOf(const std::vector<std::vector<TokenId>>& token_lists) {
  std::vector<Sequence> sequences;
  for (const auto& tokens : token_lists) {
    sequences.push_back({.tokens = tokens, .rows = {}, .pooling = protocol::Pooling::kNone});
  }
  return sequences;
}

TokenTrie Build(const std::vector<Sequence>& sequences) {
  std::vector<const Sequence*> pointers;
  for (const Sequence& sequence : sequences) {
    pointers.push_back(&sequence);
  }
  return BuildTokenTrie(pointers);
}

// Replays the writes: what lies in each slot of each block.
std::map<std::pair<ops::KvBlockId, int32_t>, int64_t> ReplayWrites(const model::TokenBatch& batch) {
  std::map<std::pair<ops::KvBlockId, int32_t>, int64_t> row_of_slot;
  for (const ops::KvWrite& write : batch.kv_writes) {
    row_of_slot[{write.block, write.slot}] = write.row;
  }
  return row_of_slot;
}

// Every sequence must find, along the path of the segment that computes its last new row, exactly
// its own tokens.
void ExpectSound(const std::vector<Sequence>& sequences, const TokenTrie& trie) {
  const model::TokenBatch& batch = trie.batch;
  const auto row_of_slot = ReplayWrites(batch);
  std::set<std::vector<TokenId>> distinct_prefixes;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto& tokens = sequences[i].tokens;
    ASSERT_EQ(trie.rows_of[i].size(), tokens.size());
    for (size_t p = 0; p < tokens.size(); ++p) {
      distinct_prefixes.insert(std::vector<TokenId>(tokens.begin(), tokens.begin() + p + 1));
      EXPECT_EQ(batch.tokens[trie.rows_of[i][p]], tokens[p]);
      EXPECT_EQ(batch.positions[trie.rows_of[i][p]], static_cast<int32_t>(p));
    }
  }
  EXPECT_EQ(batch.row_count(), static_cast<int64_t>(distinct_prefixes.size()));

  int64_t next_row = 0;
  for (const model::PathSegment& segment : batch.segments) {
    EXPECT_EQ(segment.row_begin, next_row);
    next_row += segment.row_count;
    // The sequence this segment belongs to: one that holds its last row.
    const int64_t last_row = segment.row_begin + segment.row_count - 1;
    const int32_t last_position = segment.position_begin + segment.row_count - 1;
    const auto owner = std::ranges::find_if(trie.rows_of, [&](const auto& rows) {
      return std::ranges::find(rows, last_row) != rows.end();
    });
    ASSERT_NE(owner, trie.rows_of.end());
    for (int32_t position = 0; position <= last_position; ++position) {
      EXPECT_EQ(row_of_slot.at({segment.path[position / 16], position % 16}), (*owner)[position]);
      EXPECT_LE((*owner)[position], last_row) << "an ancestor comes after its heir";
    }
  }
  EXPECT_EQ(next_row, batch.row_count());
  EXPECT_TRUE(std::ranges::is_sorted(batch.kv_writes, {}, &ops::KvWrite::row));
}

TEST(TokenTrie, SharesAPrefixDownToTheToken) {
  std::vector<TokenId> prompt(37);
  std::iota(prompt.begin(), prompt.end(), 100);
  std::vector<TokenId> first = prompt, second = prompt;
  first.insert(first.end(), {1, 2});
  second.push_back(3);
  const auto sequences = SequencesOf({first, second, prompt, first});
  const TokenTrie trie = Build(sequences);
  ExpectSound(sequences, trie);
  EXPECT_EQ(trie.batch.row_count(), 37 + 2 + 1);
}

TEST(TokenTrie, SharesNothingAcrossDifferentFirstTokens) {
  const auto sequences = SequencesOf({{1, 5, 6}, {2, 5, 6}});
  const TokenTrie trie = Build(sequences);
  ExpectSound(sequences, trie);
  EXPECT_EQ(trie.batch.row_count(), 6);
}

std::vector<Sequence> RandomForest(std::mt19937& random) {
  std::vector<std::vector<TokenId>> token_lists;
  const int count = 1 + static_cast<int>(random() % 12);
  for (int i = 0; i < count; ++i) {
    std::vector<TokenId> tokens;
    if (!token_lists.empty() && random() % 4 != 0) {  // go on from a prefix of an earlier one
      const auto& parent = token_lists[random() % token_lists.size()];
      tokens.assign(parent.begin(),
                    parent.begin() + 1 + static_cast<int64_t>(random() % parent.size()));
    }
    for (size_t extra = random() % 40 + (tokens.empty() ? 1 : 0); extra > 0; --extra) {
      tokens.push_back(static_cast<TokenId>(random() % 3));
    }
    token_lists.push_back(tokens);
  }
  return SequencesOf(token_lists);
}

TEST(TokenTrie, IsSoundOnRandomForests) {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 200; ++round) {
    const auto sequences = RandomForest(random);
    ExpectSound(sequences, Build(sequences));
  }
}

// Blocks that are kept for two tenants, some held and some new: each sequence finds its own tokens
// along its path, and what nobody needs is not computed.
TEST(TokenTrie, IsSoundOverKeptBlocks) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    const auto sequences = RandomForest(random);
    using Prefix = std::pair<int, std::vector<TokenId>>;  // of a tenant
    std::map<Prefix, int32_t> block_of;
    std::map<Prefix, bool> is_held;
    std::vector<std::vector<TokenId>> content;  // of each kept block, the whole prefix
    std::vector<std::vector<int32_t>> paths;
    std::vector<KeptPrefix> kept(sequences.size());
    std::map<std::vector<TokenId>, bool> is_needed;
    for (const Sequence& sequence : sequences) {
      Prefix prefix{static_cast<int>(random() % 2), {}};
      KeptPrefix& mine = kept[paths.size()];
      std::vector<int32_t>& path = paths.emplace_back();
      const size_t whole_blocks = sequence.tokens.size() / 16;
      for (size_t block = 0; block < whole_blocks && random() % 6 != 0; ++block) {
        prefix.second.assign(sequence.tokens.begin(),
                             sequence.tokens.begin() + static_cast<int64_t>(block + 1) * 16);
        const auto [found, is_new] =
            block_of.try_emplace(prefix, static_cast<int32_t>(content.size()));
        if (is_new) {
          content.push_back(prefix.second);
          is_held[prefix] = std::ssize(path) == mine.held_count && random() % 2 == 0;
        }
        mine.held_count += is_held[prefix] ? 1 : 0;
        path.push_back(found->second);
      }
      const auto last = static_cast<int32_t>(sequence.tokens.size()) - 1;
      mine.needed_begin =
          std::min(mine.held_count * 16, static_cast<int32_t>(random() % (last + 1))) / 16 * 16;
      std::vector<TokenId> tokens;
      for (const TokenId token : sequence.tokens) {
        tokens.push_back(token);
        is_needed[tokens] |= std::ssize(tokens) > mine.needed_begin;
      }
    }
    std::vector<const Sequence*> pointers;
    for (size_t i = 0; i < sequences.size(); ++i) {
      pointers.push_back(&sequences[i]);
      kept[i].path = paths[i];
    }
    const std::vector<std::byte*> kept_blocks(content.size());
    const TokenTrie trie = BuildTokenTrie(pointers, {}, kept_blocks, kept);
    const model::TokenBatch& batch = trie.batch;

    int64_t cached_count = 0;
    int64_t row_count = 0;
    for (const TokenTrie::Share& share : trie.shares) {
      cached_count += share.cached_count;
      row_count += share.row_count;
    }
    const auto needed_count = std::ranges::count_if(is_needed, [](auto& p) { return p.second; });
    ASSERT_EQ(batch.row_count(), needed_count);
    ASSERT_EQ(row_count, needed_count);
    ASSERT_EQ(cached_count, std::ssize(is_needed) - needed_count);

    // The token in each slot of each block when the last row is through, and the row it is from.
    std::map<std::pair<ops::KvBlockId, int32_t>, std::pair<TokenId, int64_t>> slots;
    for (const auto& [prefix, block] : block_of) {
      for (int32_t slot = 0; is_held[prefix] && slot < 16; ++slot) {
        slots[{block, slot}] = {prefix.second[prefix.second.size() - 16 + slot], -1};
      }
    }
    for (const ops::KvWrite& write : batch.kv_writes) {
      const bool is_first =
          slots.try_emplace({write.block, write.slot}, batch.tokens[write.row], write.row).second;
      ASSERT_TRUE(is_first) << "written twice, or held";
    }
    for (size_t i = 0; i < sequences.size(); ++i) {
      for (size_t block = 0; block < paths[i].size(); ++block) {
        for (int32_t slot = 0; slot < 16; ++slot) {
          ASSERT_EQ(slots.at({paths[i][block], slot}).first,
                    sequences[i].tokens[block * 16 + slot]);
        }
      }
      for (size_t p = kept[i].needed_begin; p < sequences[i].tokens.size(); ++p) {
        ASSERT_EQ(batch.tokens[trie.rows_of[i][p]], sequences[i].tokens[p]);
        ASSERT_EQ(batch.positions[trie.rows_of[i][p]], static_cast<int32_t>(p));
      }
    }
    // Along the path of a segment: the tokens of a sequence that has its rows, each from a row that
    // is not later.
    for (const model::PathSegment& segment : batch.segments) {
      const int64_t last_row = segment.row_begin + segment.row_count - 1;
      const int32_t last_position = segment.position_begin + segment.row_count - 1;
      const size_t owner =
          std::ranges::find_if(
              trie.rows_of,
              [&](const auto& rows) { return std::ranges::find(rows, last_row) != rows.end(); }) -
          trie.rows_of.begin();
      for (int32_t position = 0; position <= last_position; ++position) {
        const auto [token, row] = slots.at({segment.path[position / 16], position % 16});
        ASSERT_EQ(token, sequences[owner].tokens[position]);
        ASSERT_LE(row,
                  position < segment.position_begin
                      ? segment.row_begin - 1
                      : segment.row_begin + position - segment.position_begin);
      }
    }
    ASSERT_TRUE(std::ranges::is_sorted(batch.kv_writes, {}, &ops::KvWrite::row));
  }
}

}  // namespace
}  // namespace zp::engine
