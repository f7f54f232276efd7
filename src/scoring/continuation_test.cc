#include <limits>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scoring/fake_model.h"
#include "scoring/scoring.h"

namespace zp::scoring {
namespace {

using ::testing::HasSubstr;

protocol::Work Plan(const ContinuationQuestion& question) {
  protocol::Work work;
  EXPECT_TRUE(PlanContinuation(question, work).ok());
  EXPECT_EQ(work.sequences.size(), 1u);
  return work;
}

ContinuationAnswer Ask(const ContinuationQuestion& question) {
  return ReadContinuation(question, FakeModel::Run(Plan(question))[0]).value();
}

Tokens GreedyContinuation(Tokens prompt, int length) {
  Tokens continuation;
  for (int i = 0; i < length; ++i) {
    continuation.push_back(FakeModel::ArgMax(prompt));
    prompt.push_back(continuation.back());
  }
  return continuation;
}

TEST(Continuation, MatchesTheChainRule) {
  for (const Tokens& continuation : {Tokens{4}, Tokens{4, 5}, Tokens{0, 0, 22, 3, 1}}) {
    const ContinuationQuestion question{.prompt = {1, 2, 3}, .continuation = continuation};
    const ContinuationAnswer answer = Ask(question);
    EXPECT_NEAR(answer.log_prob, FakeModel::LogProb(question.prompt, continuation), 1e-5);
    ASSERT_EQ(answer.token_log_probs.size(), continuation.size());
    EXPECT_NEAR(
        answer.token_log_probs[0], FakeModel::LogProb(question.prompt, {continuation[0]}), 1e-6);
    EXPECT_DOUBLE_EQ(
        answer.log_prob,
        std::accumulate(answer.token_log_probs.begin(), answer.token_log_probs.end(), 0.0));
  }
}

TEST(Continuation, IsGreedyOnlyIfEachTokenWasTheMostLikely) {
  ContinuationQuestion question{.prompt = {1, 2}};
  question.continuation = GreedyContinuation(question.prompt, 4);
  EXPECT_TRUE(Ask(question).is_greedy);
  question.continuation[3] = (question.continuation[3] + 1) % FakeModel::kVocabCount;
  EXPECT_FALSE(Ask(question).is_greedy);
  question.continuation = GreedyContinuation(question.prompt, 4);
  question.continuation[0] = (question.continuation[0] + 1) % FakeModel::kVocabCount;
  EXPECT_FALSE(Ask(question).is_greedy);
}

TEST(Continuation, DoesNotForwardItsLastToken) {
  const protocol::Work work = Plan({.prompt = {1, 2}, .continuation = {7, 8, 9}});
  EXPECT_EQ(work.sequences[0].tokens, (Tokens{1, 2, 7, 8}));
}

TEST(Continuation, ThatCannotBeAskedIsNamed) {
  protocol::Work work;
  EXPECT_THAT(base::MessageOf(PlanContinuation({.prompt = {}, .continuation = {1}}, work)),
              HasSubstr("prompt is empty"));
  EXPECT_THAT(base::MessageOf(PlanContinuation({.prompt = {1}, .continuation = {}}, work)),
              HasSubstr("continuation is empty"));
}

TEST(Continuation, ReportsLogitsThatAreNotFinite) {
  const ContinuationQuestion question{.prompt = {1, 2}, .continuation = {7, 8}};
  protocol::SequenceResult result = FakeModel::Run(Plan(question))[0];
  result.rows[1].column_logits[0] = std::numeric_limits<float>::quiet_NaN();
  const absl::Status status = ReadContinuation(question, result).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("not finite (prompt position 2)"));
  result.rows.pop_back();
  EXPECT_FALSE(ReadContinuation(question, result).ok());
}

}  // namespace
}  // namespace zp::scoring
