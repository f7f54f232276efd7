#include "scheduler/work_parts.h"

#include "gtest/gtest.h"
#include "protocol/work_cost.h"

namespace zp::scheduler {
namespace {

using protocol::TokenId;
using protocol::Work;
using protocol::WorkResult;

protocol::Sequence Range(TokenId first, int32_t count) {
  protocol::Sequence sequence;
  for (int32_t i = 0; i < count; ++i) {
    sequence.tokens.push_back(first + i);
  }
  return sequence;
}

spec::ModelSpec Spec() {
  return {.layer_count = 2,
          .model_dim = 64,
          .vocab_count = 1000,
          .query_head_count = 4,
          .kv_head_count = 2,
          .head_dim = 16,
          .expert_count = 8,
          .experts_per_token = 2,
          .expert_dim = 32,
          .layer_is_moe = {true, true}};
}

WorkPlan Plan(const Work& work, int64_t max_batch_tokens) {
  return PlanParts(Spec(), protocol::BlockHasher(7), work, max_batch_tokens);
}

double SumOfFlops(const WorkPlan& plan) {
  double flops = 0;
  for (const PartCost& part : plan.parts) {
    flops += part.flops;
  }
  return flops;
}

TEST(WorkParts, AWorkThatFitsIsOnePart) {
  const Work work{.sequences = {Range(0, 40), Range(0, 30), Range(1000, 20)}};
  const WorkPlan plan = Plan(work, 100);
  EXPECT_EQ(plan.part_ends, (std::vector<int32_t>{3}));
  EXPECT_EQ(CountTokens(plan.parts[0].blocks), 40 + 14 + 20);
}

TEST(WorkParts, AreSmallAgainstAPassAndOfWholeSequences) {
  Work work;
  for (TokenId i = 0; i < 5; ++i) {
    work.sequences.push_back(Range(1000 * i, 400));
  }
  EXPECT_EQ(Plan(work, 1600).part_ends, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  for (protocol::Sequence& sequence : work.sequences) {
    sequence.tokens.resize(40);
  }
  EXPECT_EQ(Plan(work, 160).part_ends, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(Plan(work, 199).part_ends, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(Plan(work, 200).part_ends, (std::vector<int32_t>{5}));
}

TEST(WorkParts, CountASharedPrefixOnce) {
  Work work;
  for (int i = 0; i < 10; ++i) {
    work.sequences.push_back(Range(0, 80));
  }
  const WorkPlan plan = Plan(work, 100);
  EXPECT_EQ(plan.part_ends, (std::vector<int32_t>{10}));
  EXPECT_EQ(plan.parts[0].blocks.size(), 5u);
}

TEST(WorkParts, CostTogetherWhatTheWorkCosts) {
  Work work;
  for (TokenId i = 0; i < 20; ++i) {
    protocol::Sequence sequence = Range(0, 64);
    const protocol::Sequence rest = Range(1000 * (i + 1), 30);
    sequence.tokens.insert(sequence.tokens.end(), rest.tokens.begin(), rest.tokens.end());
    sequence.rows = {{.position = 93, .columns = {1}}};
    work.sequences.push_back(std::move(sequence));
  }
  for (const int64_t max_batch_tokens : {100, 200, 10'000}) {
    const WorkPlan plan = Plan(work, max_batch_tokens);
    EXPECT_EQ(plan.parts.size(), plan.part_ends.size());
    const double expected = protocol::CostOf(Spec(), work).flops;
    EXPECT_NEAR(plan.flops, expected, 1e-9 * expected);
    EXPECT_NEAR(SumOfFlops(plan), expected, 1e-9 * expected);
  }
}

TEST(WorkAssembly, JoinsSequencesInOrderWhateverPieceComesFirst) {
  WorkAssembly assembly(3);
  assembly.Add(2,
               WorkResult{.sequences = {{.pooled = {3}}},
                          .usage = {.computed_tokens = 5, .cached_tokens = 2, .queue_seconds = 2}});
  EXPECT_FALSE(assembly.is_whole());
  assembly.Add(0,
               WorkResult{.sequences = {{.pooled = {1}}, {.pooled = {2}}},
                          .usage = {.computed_tokens = 7, .queue_seconds = 1}});
  ASSERT_TRUE(assembly.is_whole());
  const WorkResult whole = assembly.Take();
  ASSERT_EQ(whole.sequences.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(whole.sequences[i].pooled[0], static_cast<float>(i + 1));
  }
  EXPECT_EQ(whole.usage.computed_tokens, 12);
  EXPECT_EQ(whole.usage.cached_tokens, 2);
  EXPECT_EQ(whole.usage.queue_seconds, 1);
}

}  // namespace
}  // namespace zp::scheduler
