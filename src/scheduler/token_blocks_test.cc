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

int64_t CountDistinct(const std::vector<protocol::Sequence>& sequences) {
  DistinctTokens distinct;
  for (const protocol::Sequence& sequence : sequences) {
    distinct.Add(distinct.FindNew(CutIntoBlocks(sequence)));
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
    EXPECT_EQ(CountTokens(CutIntoBlocks(Range(0, count))), count);
  }
}

}  // namespace
}  // namespace zp::scheduler
