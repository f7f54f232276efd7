#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scoring/scoring.h"

namespace zp::scoring {
namespace {

using protocol::Pooling;
using ::testing::HasSubstr;

TEST(Embedding, AsksForAPooledStateAndNoRows) {
  protocol::Work work;
  ASSERT_TRUE(PlanEmbedding({.tokens = {1, 2}, .pooling = Pooling::kMean}, work).ok());
  ASSERT_EQ(work.sequences.size(), 1u);
  EXPECT_EQ(work.sequences[0].pooling, Pooling::kMean);
  EXPECT_TRUE(work.sequences[0].rows.empty());
}

TEST(Embedding, HasLengthOneOnlyWhenAsked) {
  const protocol::SequenceResult result{.pooled = {3.0f, -4.0f}};
  EXPECT_EQ(ReadEmbedding({.normalize = true}, result).value(), (std::vector<float>{0.6f, -0.8f}));
  EXPECT_EQ(ReadEmbedding({.normalize = false}, result).value(), (std::vector<float>{3.0f, -4.0f}));
}

TEST(Embedding, OfZerosStaysZeros) {
  EXPECT_EQ(ReadEmbedding({}, {.pooled = {0.0f, 0.0f}}).value(), (std::vector<float>{0.0f, 0.0f}));
}

TEST(Embedding, ThatCannotBeAskedIsNamed) {
  protocol::Work work;
  EXPECT_THAT(base::MessageOf(PlanEmbedding({.tokens = {}}, work)), HasSubstr("tokens is empty"));
  EXPECT_THAT(base::MessageOf(PlanEmbedding({.tokens = {1}, .pooling = Pooling::kNone}, work)),
              HasSubstr("pooling is none"));
}

TEST(Embedding, ReportsAStateThatIsNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(base::MessageOf(ReadEmbedding({}, {.pooled = {1.0f, nan}}).status()),
              HasSubstr("not finite"));
  EXPECT_FALSE(ReadEmbedding({}, {}).ok());
}

}  // namespace
}  // namespace zp::scoring
