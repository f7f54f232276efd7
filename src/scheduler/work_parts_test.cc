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
          .expert_dim = 100'000,
          .layer_is_moe = {true, true}};
}

WorkPlan Plan(const Work& work, int64_t max_batch_tokens, int64_t ahead_tokens = 0) {
  return PlanParts(Spec(),
                   protocol::BlockHasher(7),
                   work,
                   {.max_batch_tokens = max_batch_tokens,
                    .ahead_tokens = ahead_tokens,
                    .max_held_tokens = 4000});
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
  EXPECT_EQ(plan.cuts.sequence_ends, (std::vector<int32_t>{3}));
  EXPECT_EQ(CountTokens(plan.parts[0].blocks), 40 + 14 + 20);
}

TEST(WorkParts, AreSmallAgainstAPassAndOfWholeSequences) {
  Work work;
  for (TokenId i = 0; i < 5; ++i) {
    work.sequences.push_back(Range(1000 * i, 400));
  }
  EXPECT_EQ(Plan(work, 1600).cuts.sequence_ends, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  for (protocol::Sequence& sequence : work.sequences) {
    sequence.tokens.resize(40);
  }
  EXPECT_EQ(Plan(work, 160).cuts.sequence_ends, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(Plan(work, 199).cuts.sequence_ends, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(Plan(work, 200).cuts.sequence_ends, (std::vector<int32_t>{5}));
}

TEST(WorkParts, CountASharedPrefixOnce) {
  Work work;
  for (int i = 0; i < 10; ++i) {
    work.sequences.push_back(Range(0, 80));
  }
  const WorkPlan plan = Plan(work, 100);
  EXPECT_EQ(plan.cuts.sequence_ends, (std::vector<int32_t>{10}));
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
  for (const int64_t max_batch_tokens : {200, 10'000}) {
    const WorkPlan plan = Plan(work, max_batch_tokens);
    EXPECT_EQ(plan.parts.size(), plan.cuts.sequence_ends.size());
    const double expected = protocol::CostOf(Spec(), work).flops;
    EXPECT_NEAR(SumOfFlops(plan), expected, 1e-9 * expected);
  }
}

// A prompt that nearly fills a pass, or more, and many labels: each pass costs all of the prompt.
TEST(WorkParts, WhatNearlyFillsAPassIsComputedInFewOfThemAndPaidForInEach) {
  for (const int32_t prompt_tokens : {304, 496, 800}) {
    for (const TokenId label_count : {5, 100}) {
      Work work;
      for (TokenId i = 0; i < label_count; ++i) {
        protocol::Sequence sequence = Range(0, prompt_tokens);
        sequence.tokens.insert(sequence.tokens.end(), {1000 + i, 2000 + i, 3000 + i, 4000 + i});
        sequence.rows = {{.position = prompt_tokens + 3, .columns = {1}}};
        work.sequences.push_back(std::move(sequence));
      }
      const WorkPlan plan = Plan(work, 500);
      // Half a pass of labels comes with the prompt each time.
      EXPECT_LE(plan.parts.size(), 1u + 4 * label_count / 240)
          << prompt_tokens << " " << label_count;
      double expected = 0;
      int32_t begin = 0;
      for (size_t i = 0; i < plan.parts.size(); ++i) {
        const int32_t end = plan.cuts.sequence_ends[i];
        const Work part{
            .sequences = {work.sequences.begin() + begin, work.sequences.begin() + end}};
        EXPECT_LE(CountTokens(plan.parts[i].blocks), prompt_tokens + 4 + 250);
        expected += protocol::CostOf(Spec(), part).flops;
        begin = end;
      }
      EXPECT_EQ(begin, label_count);
      EXPECT_NEAR(SumOfFlops(plan), expected, 1e-9 * expected);
    }
  }
}

TEST(WorkParts, WhatIsShorterThanTwoStepsIsNotComputedAhead) {
  Work work{.sequences = {Range(0, 255)}};
  work.sequences[0].rows = {{.position = 254, .columns = {1}}};
  EXPECT_TRUE(Plan(work, 1000, 128).cuts.ahead_ends.empty());
  work.sequences[0] = Range(0, 256);
  work.sequences[0].rows = {{.position = 255, .columns = {1}}};
  EXPECT_EQ(Plan(work, 1000, 128).cuts.ahead_ends, (std::vector<int32_t>{128}));
}

TEST(WorkParts, ALongSequenceIsComputedAheadThroughTheCache) {
  Work work{.sequences = {Range(0, 500)}};
  work.sequences[0].rows = {{.position = 499, .columns = {1}}};
  const WorkPlan plan = Plan(work, 1000, 130);
  EXPECT_EQ(plan.cuts.ahead_ends, (std::vector<int32_t>{128, 256, 384}));
  EXPECT_EQ(plan.cuts.sequence_ends, (std::vector<int32_t>{1}));
  ASSERT_EQ(plan.parts.size(), 4u);
  int64_t tokens = 0;
  for (const PartCost& part : plan.parts) {
    tokens += CountTokens(part.blocks);
  }
  EXPECT_EQ(tokens, 500);
  // Each part costs a row of its own beside what the whole would.
  EXPECT_NEAR(SumOfFlops(plan), protocol::CostOf(Spec(), work).flops, 0.05 * SumOfFlops(plan));

  const WorkPiece ahead = TakePiece(plan.cuts, {.first_part = 1, .part_count = 1}, work);
  EXPECT_TRUE(ahead.is_ahead);
  EXPECT_EQ(ahead.work.sequences[0].tokens, Range(0, 256).tokens);
  const WorkPiece last = TakePiece(plan.cuts, {.first_part = 3, .part_count = 1}, work);
  EXPECT_FALSE(last.is_ahead);
  EXPECT_EQ(last.work.sequences[0].tokens, Range(0, 500).tokens);
  EXPECT_EQ(last.work.sequences[0].rows.size(), 1u);
}

TEST(WorkParts, WhatIsComputedAheadCostsAboutTheSameEachTime) {
  spec::ModelSpec spec = Spec();
  spec.expert_dim = 32;  // attention weighs much
  const PlanLimits limits = {
      .max_batch_tokens = 5000, .ahead_tokens = 512, .max_held_tokens = 100'000};
  const WorkPlan plan =
      PlanParts(spec, protocol::BlockHasher(7), {.sequences = {Range(0, 5000)}}, limits);
  ASSERT_GT(plan.cuts.ahead_ends.size(), 10u);
  for (size_t i = 1; i < plan.cuts.ahead_ends.size(); ++i) {
    EXPECT_EQ(plan.cuts.ahead_ends[i] % 16, 0);
    EXPECT_NEAR(plan.parts[i].flops, plan.parts[0].flops, 0.25 * plan.parts[0].flops) << i;
  }
}

TEST(WorkParts, OnlyWhatAllSequencesBeginWithIsComputedAhead) {
  Work work{.sequences = {Range(0, 300), Range(0, 300)}};
  work.sequences[1].tokens[200] = 7;
  EXPECT_EQ(Plan(work, 1000, 96).cuts.ahead_ends, (std::vector<int32_t>{96, 192}));
  // Nothing before a row that is asked.
  work.sequences[1].rows = {{.position = 100, .columns = {1}}};
  EXPECT_EQ(Plan(work, 1000, 96).cuts.ahead_ends, (std::vector<int32_t>{96}));
}

TEST(WorkParts, NothingIsComputedAheadThatTheCacheMayNotHold) {
  const Work work{.sequences = {Range(0, 1001)}};
  EXPECT_TRUE(Plan(work, 5000, 96).cuts.ahead_ends.empty());
  EXPECT_TRUE(Plan({.sequences = {Range(0, 500)}}, 1000, 0).cuts.ahead_ends.empty());
}

TEST(WorkParts, WhatIsHeldIsNeitherComputedAheadNorPaidFor) {
  Work work{.sequences = {Range(0, 500)}};
  const protocol::BlockHasher hasher(7);
  HeldBlocks held;
  std::vector<protocol::BlockHash> chain = hasher.Chain("", work.sequences[0].tokens);
  chain.resize(10);
  held.Apply({.stored = chain});
  const PlanLimits limits = {
      .max_batch_tokens = 1000, .ahead_tokens = 128, .max_held_tokens = 4000, .held = &held};
  const WorkPlan plan = PlanParts(Spec(), hasher, work, limits);
  // What is held is cut as well: it may be lost before the work's turn.
  EXPECT_EQ(plan.cuts.ahead_ends, (std::vector<int32_t>{128, 160, 160 + 128, 160 + 2 * 128}));
  const std::vector<int32_t> held_tokens = {160};
  BatchQueue queue({.held = &held});
  queue.Add({.id = 1,
             .parts = plan.parts,
             .ahead_count = static_cast<int32_t>(plan.cuts.ahead_ends.size())});
  EXPECT_NEAR(queue.waiting_flops(),
              protocol::CostOf(Spec(), work, held_tokens).flops,
              0.05 * queue.waiting_flops());
  const Batch batch = queue.Take({});
  EXPECT_EQ(batch.works[0].first_part, 2);
  EXPECT_EQ(batch.distinct_tokens, 128);

  held.Apply({.removed = {chain[5]}});
  EXPECT_EQ(PlanParts(Spec(), hasher, work, limits).cuts.ahead_ends,
            (std::vector<int32_t>{80, 80 + 128, 80 + 2 * 128, 80 + 3 * 128}));
}

TEST(WorkParts, WhatIsShortBesideWhatIsHeldIsNotComputedAhead) {
  Work work{.sequences = {Range(0, 160 + 2 * 128)}};
  const protocol::BlockHasher hasher(7);
  std::vector<protocol::BlockHash> chain = hasher.Chain("", work.sequences[0].tokens);
  chain.resize(10);
  HeldBlocks held;
  held.Apply({.stored = chain});
  const PlanLimits limits = {
      .max_batch_tokens = 1000, .ahead_tokens = 128, .max_held_tokens = 4000, .held = &held};
  EXPECT_EQ(PlanParts(Spec(), hasher, work, limits).cuts.ahead_ends,
            (std::vector<int32_t>{128, 160, 160 + 128}));
  work.sequences[0].tokens.pop_back();
  EXPECT_EQ(PlanParts(Spec(), hasher, work, limits).cuts.ahead_ends,
            (std::vector<int32_t>{128, 160}));
}

TEST(WorkParts, WhatNeedsPassesAfterItsBeginningIsNotComputedAhead) {
  Work work;
  for (TokenId i = 0; i < 5; ++i) {
    work.sequences.push_back(Range(0, 200));
    work.sequences.back().tokens[110] = 1000 + i;
  }
  EXPECT_EQ(Plan(work, 1000, 96).cuts.ahead_ends, (std::vector<int32_t>{96}));
  const WorkPlan plan = Plan(work, 200, 96);
  EXPECT_TRUE(plan.cuts.ahead_ends.empty());
  EXPECT_EQ(plan.parts.size(), 5u);
}

TEST(WorkAssembly, CountsWhatWasComputedAheadOnce) {
  WorkAssembly assembly(1);
  assembly.AddAhead({.prompt_tokens = 64, .computed_tokens = 64, .flops = 5, .queue_seconds = 1});
  assembly.Add(0,
               {.sequences = {{}},
                .usage = {.prompt_tokens = 100,
                          .computed_tokens = 36,
                          .cached_tokens = 64,
                          .flops = 4,
                          .queue_seconds = 3}});
  const protocol::Usage usage = assembly.Take().usage;
  EXPECT_EQ(usage.prompt_tokens, 100);
  EXPECT_EQ(usage.computed_tokens, 100);
  EXPECT_EQ(usage.cached_tokens, 0);
  EXPECT_EQ(usage.flops, 9);
  EXPECT_EQ(usage.queue_seconds, 1);
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
