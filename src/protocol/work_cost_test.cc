#include "protocol/work_cost.h"

#include <numeric>

#include "gtest/gtest.h"
#include "spec/flops.h"
#include "spec/model_shapes.h"

namespace zp::protocol {
namespace {

spec::ModelSpec Spec() { return *spec::FindModelShape("qwen3-30b-a3b"); }

// Rising tokens from `first`; the last row is asked for one label.
Sequence Rising(int32_t count, spec::TokenId first = 0) {
  Sequence sequence;
  sequence.tokens.resize(count);
  std::iota(sequence.tokens.begin(), sequence.tokens.end(), first);
  sequence.rows.push_back({.position = count - 1, .columns = {1}});
  return sequence;
}

TEST(BlockChain, NamesCoverAllThatCameBefore) {
  const BlockHasher hasher(7);
  std::vector<spec::TokenId> tokens(50, 3);
  const auto chain = hasher.Chain("", tokens);
  ASSERT_EQ(chain.size(), 3u);
  EXPECT_NE(chain[0], chain[1]);  // the same tokens further on are another prefix
  tokens[0] = 4;
  EXPECT_NE(hasher.Chain("", tokens)[2], chain[2]);
  tokens[0] = 3;
  EXPECT_EQ(hasher.Chain("", tokens), chain);
  EXPECT_NE(hasher.Chain("tenant", tokens)[0], chain[0]);
  EXPECT_NE(BlockHasher(8).Chain("", tokens)[0], chain[0]);
}

TEST(WorkCost, OfOneSequenceIsThatOfItsPass) {
  const Work work{.request_id = "a", .sequences = {Rising(100)}};
  const spec::PassShape shape = {.token_count = 100,
                                 .asked_token_count = 1,
                                 .attention_flops = spec::AttentionFlops(Spec(), 100, 0),
                                 .asked_attention_flops = spec::AttentionFlops(Spec(), 1, 99),
                                 .label_columns = 1};
  const WorkCost cost = CostOf(Spec(), work);
  EXPECT_EQ(cost.tokens, 100);
  EXPECT_DOUBLE_EQ(cost.flops, spec::PassFlops(Spec(), shape));
}

TEST(WorkCost, SequencesOfAWorkShareTheirPrefixInWholeBlocks) {
  Work work{.request_id = "a", .sequences = {Rising(100), Rising(90)}};
  EXPECT_EQ(CostOf(Spec(), work).tokens, 100 + 90 - 80);
  work.sequences[1].tokens[20] = 7777;
  EXPECT_EQ(CostOf(Spec(), work).tokens, 100 + 90 - 16);
}

TEST(WorkCost, WorksOfAPassShareTheirPrefixInWholeBlocks) {
  const spec::ModelSpec spec = Spec();
  const Work one{.request_id = "a", .sequences = {Rising(100)}};
  const Work two{.request_id = "b", .sequences = {Rising(90)}};
  PassCost pass(spec);
  EXPECT_EQ(pass.Add(one).tokens, 100);
  EXPECT_EQ(pass.Add(two).tokens, 10);
  const std::vector<int32_t> held = {88};
  EXPECT_EQ(pass.Add(two, held).tokens, 10);
}

TEST(WorkCost, HeldTokensAreNotComputed) {
  const Work work{.request_id = "a", .sequences = {Rising(100)}};
  const std::vector<int32_t> held = {64};
  EXPECT_EQ(CostOf(Spec(), work, held).tokens, 36);
  EXPECT_LT(CostOf(Spec(), work, held).flops, CostOf(Spec(), work).flops);
}

TEST(WorkCost, TheAskedRowIsComputedEvenWhereAllIsHeld) {
  EXPECT_EQ(SkippableTokens(Rising(64), 64), 48);
  EXPECT_EQ(SkippableTokens(Rising(65), 64), 64);
}

TEST(WorkCost, AnEchoIsComputedFromTheBlockOfItsFirstRow) {
  Sequence sequence = Rising(100);
  sequence.rows.insert(sequence.rows.begin(), {.position = 40, .columns = {1}});
  EXPECT_EQ(SkippableTokens(sequence, 96), 32);
  sequence.pooling = Pooling::kMean;
  EXPECT_EQ(SkippableTokens(sequence, 96), 0);
}

}  // namespace
}  // namespace zp::protocol
