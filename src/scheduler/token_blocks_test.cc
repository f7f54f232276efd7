#include "scheduler/token_blocks.h"

#include "gtest/gtest.h"

namespace zp::scheduler {
namespace {

protocol::Sequence Range(protocol::TokenId first, int32_t count) {
  protocol::Sequence sequence;
  for (int32_t i = 0; i < count; ++i) {
    sequence.tokens.push_back(first + i);
  }
  return sequence;
}

std::vector<TokenBlock> Cut(const protocol::Sequence& sequence) {
  return CutIntoBlocks(protocol::BlockHasher(7), "", sequence);
}

int64_t CountDistinct(const std::vector<protocol::Sequence>& sequences) {
  DistinctTokens distinct;
  for (const protocol::Sequence& sequence : sequences) {
    const int64_t new_tokens = distinct.CountNew(Cut(sequence));
    const int64_t before = distinct.count();
    distinct.Add(Cut(sequence));
    EXPECT_EQ(distinct.count() - before, new_tokens);
  }
  return distinct.count();
}

TEST(TokenBlocks, CountTokensThatShareNothingInFull) {
  EXPECT_EQ(CountDistinct({Range(0, 40), Range(100, 7)}), 47);
}

TEST(TokenBlocks, CountASharedPrefixOnceInWholeBlocks) {
  protocol::Sequence other_end = Range(0, 39);
  other_end.tokens.push_back(999);
  // 32 of the 40 tokens are whole blocks that both have.
  EXPECT_EQ(CountDistinct({Range(0, 40), other_end}), 48);
}

TEST(TokenBlocks, CountEqualSequencesOnce) {
  EXPECT_EQ(CountDistinct({Range(0, 40), Range(0, 40)}), 40);
}

TEST(TokenBlocks, DoNotShareEqualTokensAfterDifferentOnes) {
  protocol::Sequence other_start = Range(0, 32);
  other_start.tokens[0] = 77;
  EXPECT_EQ(CountDistinct({Range(0, 32), other_start}), 64);
}

TEST(TokenBlocks, OfOneSequenceHoldAllItsTokens) {
  for (const int count : {1, 15, 16, 17, 33}) {
    EXPECT_EQ(CountTokens(Cut(Range(0, count))), count);
  }
}

TEST(TokenBlocks, AreNamedAsEverywhere) {
  const protocol::BlockHasher hasher(7);
  const protocol::Sequence sequence = Range(0, 40);
  const std::vector<protocol::BlockHash> chain = hasher.Chain("salt", sequence.tokens);
  const std::vector<TokenBlock> blocks = CutIntoBlocks(hasher, "salt", sequence);
  ASSERT_EQ(blocks.size(), 3u);
  EXPECT_EQ(blocks[0].name, chain[0]);
  EXPECT_EQ(blocks[1].name, chain[1]);
  EXPECT_NE(Cut(sequence)[0].name, blocks[0].name);
}

}  // namespace
}  // namespace zp::scheduler
