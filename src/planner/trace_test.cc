#include "planner/trace.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::planner {
namespace {

TEST(Trace, IsTheSameFromTheSameSeed) {
  for (const std::string name :
       {"few-shot", "documents", "rerank", "conversation", "uneven", "long-tail"}) {
    const auto one = GenerateTrace(name, 300, 1);
    const auto again = GenerateTrace(name, 300, 1);
    const auto other = GenerateTrace(name, 300, 2);
    ASSERT_TRUE(one.ok() && again.ok() && other.ok()) << name;
    ASSERT_EQ(one->requests.size(), 300u);
    EXPECT_EQ(one->token_count(), again->token_count());
    EXPECT_NE(one->token_count(), other->token_count());
    const auto tokens = [](const Trace& trace) {
      return MakeWork(trace.requests[17], "r", 1000, 1 << 20).sequences[0].tokens;
    };
    EXPECT_EQ(tokens(*one), tokens(*again));
    EXPECT_NE(tokens(*one), tokens(*other));
  }
}

TEST(Trace, AMixSpreadsEachOfItsTracesOverTheWhole) {
  const Trace few = *GenerateTrace("rerank", 10, 1);
  const Trace many = *GenerateTrace("uneven", 30, 1);
  const Trace mix = MixTraces("mix", {few, many});
  ASSERT_EQ(mix.requests.size(), 40u);
  EXPECT_EQ(mix.token_count(), few.token_count() + many.token_count());
  int64_t reranks = 0;
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(mix.requests[i].arrival_s, static_cast<double>(i));
    reranks += mix.requests[i].prompts.size() > 1 ? 1 : 0;
    EXPECT_NEAR(static_cast<double>(reranks), static_cast<double>(i) / 4, 1);
  }
}

TEST(Trace, SharesWhatItsNameSays) {
  const auto hit_rate = [](const std::string& name) {
    return IdealHitRate(*GenerateTrace(name, 2000, 1));
  };
  EXPECT_GT(hit_rate("few-shot"), 0.85);
  EXPECT_GT(hit_rate("documents"), 0.5);
  EXPECT_GT(hit_rate("rerank"), 0.15);
  EXPECT_GT(hit_rate("conversation"), 0.5);
  EXPECT_EQ(hit_rate("uneven"), 0);
  EXPECT_EQ(hit_rate("long-tail"), 0);
}

TEST(Trace, NamesTheTracesThatThereAre) {
  EXPECT_THAT(std::string(GenerateTrace("none", 1, 1).status().message()),
              testing::HasSubstr("conversation, documents, few-shot"));
}

TEST(Trace, WorksAskForTheLastTokenWithinTheLimit) {
  const TraceRequest request = {.prompts = {{.runs = {{1, 100}, {2, 50}}}, {.tokens = {5, 6}}}};
  const protocol::Work work = MakeWork(request, "r", 1000, 120);
  ASSERT_EQ(work.sequences.size(), 2u);
  EXPECT_EQ(work.sequences[0].tokens.size(), 120u);
  EXPECT_EQ(work.sequences[0].rows[0].position, 119);
  EXPECT_EQ(work.sequences[1].tokens, (std::vector<spec::TokenId>{5, 6}));
}

}  // namespace
}  // namespace zp::planner
