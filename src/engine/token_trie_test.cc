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

TEST(TokenTrie, IsSoundOnRandomForests) {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 200; ++round) {
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
    const auto sequences = SequencesOf(token_lists);
    ExpectSound(sequences, Build(sequences));
  }
}

}  // namespace
}  // namespace zp::engine
