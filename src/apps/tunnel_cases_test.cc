#include "apps/tunnel_cases.h"

#include <algorithm>
#include <random>
#include <set>

#include "gtest/gtest.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

spec::ModelSpec Shape(int32_t vocab_count = 8192) {
  spec::ModelSpec spec = *spec::FindModelShape("qwen3-30b-a3b");
  spec.vocab_count = vocab_count;
  return spec;
}

// Each prefix of each prompt, once.
int64_t CountByHand(const std::vector<Prompt>& prompts) {
  std::set<Prompt> prefixes;
  for (const Prompt& prompt : prompts) {
    for (size_t length = 1; length <= prompt.size(); ++length) {
      prefixes.insert(Prompt(prompt.begin(), prompt.begin() + static_cast<int64_t>(length)));
    }
  }
  return std::ssize(prefixes);
}

TEST(DistinctTokensTest, CountsEveryPrefixOnceInAnyOrder) {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<Prompt> prompts(30);
    DistinctTokens distinct;
    int64_t added = 0;
    for (Prompt& prompt : prompts) {
      prompt.resize(1 + random() % 6);
      for (spec::TokenId& token : prompt) {
        token = static_cast<spec::TokenId>(random() % 3);
      }
      added += distinct.Add(prompt);
    }
    EXPECT_EQ(distinct.count(), CountByHand(prompts));
    EXPECT_EQ(added, distinct.count());
  }
}

TEST(DistinctTokensTest, AveragesWhatStandsBeforeDistinctTokens) {
  DistinctTokens distinct;
  distinct.Add({1, 2, 3, 4});  // 0 1 2 3
  EXPECT_DOUBLE_EQ(distinct.mean_context(), 1.5);
  distinct.Add({1, 2, 5});  // 2
  EXPECT_DOUBLE_EQ(distinct.mean_context(), 8.0 / 5);
}

TEST(MakeWorkTest, GivesEveryRankWhatWasAsked) {
  const TunnelWork work = *MakeWork("256", Shape(), 4, 1000);
  ASSERT_EQ(work.queues.size(), 4);
  EXPECT_EQ(work.pass_count(), 1);
  EXPECT_EQ(work.smallest_pass(), 1024);
  for (int32_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(work.rank_tokens(rank), 1024);
    EXPECT_EQ(work.queues[rank][0].prompts.size(), 4);
  }
  EXPECT_NE(work.queues[0][0].prompts, work.queues[1][0].prompts);
  EXPECT_EQ(work.odd_rank, -1);
}

TEST(MakeWorkTest, DoesNotCutAPromptThatIsLongerThanThePass) {
  const TunnelWork work = *MakeWork("32768", Shape(), 2, 3000);
  EXPECT_EQ(work.smallest_pass(), 32768);
  EXPECT_DOUBLE_EQ(work.mean_context, 32767.0 / 2);
}

TEST(MakeWorkTest, ChangesTheLastRankAloneWhenItIsIdleOrHasTwiceAsMuch) {
  const TunnelWork even = *MakeWork("256", Shape(), 3, 1000);
  const TunnelWork idle = *MakeWork("idle", Shape(), 3, 1000);
  const TunnelWork twice = *MakeWork("double", Shape(), 3, 1000);
  EXPECT_EQ(idle.rank_tokens(2), 0);
  EXPECT_EQ(idle.smallest_pass(), 1024);
  EXPECT_EQ(twice.rank_tokens(2), 2048);
  for (const TunnelWork* work : {&idle, &twice}) {
    EXPECT_EQ(work->odd_rank, 2);
    EXPECT_EQ(work->even_case, "256");
    EXPECT_EQ(work->pass_count(), 1);
    for (int32_t rank = 0; rank < 2; ++rank) {
      EXPECT_EQ(work->queues[rank][0].prompts, even.queues[rank][0].prompts);
    }
  }
}

TEST(MakeWorkTest, MakesUnevenQueuesOfUnevenPrompts) {
  const TunnelWork work = *MakeWork("uneven", Shape(), 3, 20000);
  EXPECT_EQ(work.pass_count(), 3);
  std::set<int64_t> passes;
  size_t shortest = 1 << 20, longest = 0;
  for (int32_t rank = 0; rank < 3; ++rank) {
    ASSERT_EQ(work.queues[rank].size(), 3);
    for (const TunnelPass& pass : work.queues[rank]) {
      passes.insert(pass.tokens);
      EXPECT_GE(pass.tokens, 14000);
      EXPECT_LE(pass.tokens, 26000);
      for (const Prompt& prompt : pass.prompts) {
        shortest = std::min(shortest, prompt.size());
        longest = std::max(longest, prompt.size());
      }
    }
  }
  EXPECT_EQ(passes.size(), 9);
  EXPECT_LT(shortest, 64);  // the last of a pass is cut
  EXPECT_GT(longest, 4096);
  EXPECT_LE(longest, 8192);
  EXPECT_NE(work.rank_tokens(0), work.rank_tokens(1));
}

TEST(MakeWorkTest, MakesUnevenPromptsUpToTheLengthAsked) {
  const TunnelWork work = *MakeWork("uneven-2048", Shape(), 2, 20000);
  size_t longest = 0;
  for (const TunnelPass& pass : work.queues[1]) {
    for (const Prompt& prompt : pass.prompts) {
      longest = std::max(longest, prompt.size());
    }
  }
  EXPECT_GT(longest, 1024);
  EXPECT_LE(longest, 2048);
}

TEST(MakeWorkTest, RefusesOtherNames) {
  for (const char* wrong :
       {"", "0", "-3", "even", "40961", "uneven-", "uneven-16", "uneven-40961", "uneven-x"}) {
    EXPECT_EQ(MakeWork(wrong, Shape(), 2, 100).status().code(), absl::StatusCode::kInvalidArgument)
        << wrong;
  }
}

// `count` questions of two answers each behind a common prefix, 10 + count * (5 + 2) tokens.
std::vector<PromptGroup> Questions(int count) {
  std::vector<PromptGroup> groups;
  for (spec::TokenId question = 0; question < count; ++question) {
    Prompt context(10, 7);
    for (spec::TokenId i = 0; i < 5; ++i) {
      context.push_back(100000 + 5 * question + i);
    }
    PromptGroup& group = groups.emplace_back(2, context);
    group[0].push_back(1);
    group[1].push_back(2);
  }
  return groups;
}

TEST(DealGroupsTest, DealsGroupsInTurnUntilEachRankHasEnoughAfterSharing) {
  const TunnelWork work = *DealGroups(Questions(1000), Shape(), 2, 80);
  EXPECT_EQ(work.file_repeats, 0);
  for (int32_t rank = 0; rank < 2; ++rank) {
    const TunnelPass& pass = work.queues[rank][0];
    EXPECT_EQ(pass.tokens, 10 + 10 * 7);
    EXPECT_EQ(pass.tokens, CountByHand(pass.prompts));
    ASSERT_EQ(pass.prompts.size(), 20);
    for (size_t i = 0; i < pass.prompts.size(); ++i) {
      const Prompt& prompt = pass.prompts[i];
      EXPECT_EQ(prompt[0], 7);
      const auto question = static_cast<int32_t>(2 * (i / 2)) + rank;
      EXPECT_EQ(prompt[10], (100000 + 5 * question) % 8192);
    }
  }
  EXPECT_EQ(work.asked_tokens, 2 * 20 * 16);
}

TEST(DealGroupsTest, GoesThroughAShortFileAgainWithOtherTokens) {
  const TunnelWork work = *DealGroups(Questions(4), Shape(), 2, 60);
  EXPECT_GE(work.file_repeats, 1);
  for (int32_t rank = 0; rank < 2; ++rank) {
    EXPECT_GE(work.rank_tokens(rank), 60);
    EXPECT_EQ(work.rank_tokens(rank), CountByHand(work.queues[rank][0].prompts));
  }
}

TEST(DealGroupsTest, KeepsTokensWithinTheVocabulary) {
  const TunnelWork work = *DealGroups(Questions(50), Shape(/*vocab_count=*/100), 3, 100);
  for (const auto& queue : work.queues) {
    for (const Prompt& prompt : queue[0].prompts) {
      EXPECT_GE(*std::ranges::min_element(prompt), 0);
      EXPECT_LT(*std::ranges::max_element(prompt), 100);
    }
  }
}

TEST(DealGroupsTest, EndsWhereNothingNewCanCome) {
  const TunnelWork work = *DealGroups({{{1}}}, Shape(/*vocab_count=*/100), 2, 1000);
  EXPECT_LE(work.rank_tokens(0), 100);
}

TEST(DealGroupsTest, RefusesWhatCannotRun) {
  EXPECT_FALSE(DealGroups({}, Shape(), 2, 100).ok());
  EXPECT_FALSE(DealGroups({{{}}}, Shape(), 2, 100).ok());
  EXPECT_FALSE(DealGroups({{Prompt(40961, 1)}}, Shape(), 2, 100).ok());
}

}  // namespace
}  // namespace zp::apps
