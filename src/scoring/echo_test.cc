#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scoring/fake_model.h"
#include "scoring/scoring.h"

namespace zp::scoring {
namespace {

using ::testing::HasSubstr;

protocol::Work Plan(const EchoQuestion& question) {
  protocol::Work work;
  EXPECT_TRUE(PlanEcho(question, work).ok());
  return work;
}

EchoAnswer Ask(const EchoQuestion& question) {
  return ReadEcho(question, FakeModel::Run(Plan(question))[0]).value();
}

TEST(Echo, GivesEachTokenItsLogProbAfterThoseBefore) {
  const Tokens tokens{3, 1, 4, 1, 5};
  const EchoAnswer answer = Ask({.tokens = tokens});
  ASSERT_EQ(answer.positions.size(), tokens.size() - 1);
  for (size_t i = 1; i < tokens.size(); ++i) {
    const Tokens prefix(tokens.begin(), tokens.begin() + i);
    EXPECT_NEAR(answer.positions[i - 1].log_prob, FakeModel::LogProb(prefix, {tokens[i]}), 1e-6);
    EXPECT_TRUE(answer.positions[i - 1].top.empty());
  }
  EXPECT_TRUE(answer.next.empty());
}

TEST(Echo, AlternativesFallAndStartWithTheMostLikely) {
  const Tokens tokens{3, 1, 4};
  const EchoAnswer answer = Ask({.tokens = tokens, .top_count = 5, .next_token = true});
  ASSERT_EQ(answer.positions.size(), 2u);
  EXPECT_EQ(answer.positions[1].top[0].token, FakeModel::ArgMax(std::span(tokens).first(2)));
  ASSERT_EQ(answer.next.size(), 5u);
  EXPECT_EQ(answer.next[0].token, FakeModel::ArgMax(tokens));
  for (size_t i = 1; i < 5; ++i) {
    EXPECT_GE(answer.next[i - 1].log_prob, answer.next[i].log_prob);
    EXPECT_NEAR(answer.next[i].log_prob, FakeModel::LogProb(tokens, {answer.next[i].token}), 1e-6);
  }
}

// A client decides "greedy" by comparing the two figures with ==.
TEST(Echo, LogProbOfTheMostLikelyTokenIsBitEqualInBothPlaces) {
  Tokens tokens{3, 1};
  tokens.push_back(FakeModel::ArgMax(tokens));
  const EchoAnswer answer = Ask({.tokens = tokens, .top_count = 1});
  EXPECT_EQ(answer.positions[1].top[0].token, tokens[2]);
  EXPECT_EQ(answer.positions[1].top[0].log_prob, answer.positions[1].log_prob);
}

TEST(Echo, NextTokenComesEvenWithoutAlternatives) {
  const EchoAnswer answer = Ask({.tokens = {9}, .next_token = true});
  EXPECT_TRUE(answer.positions.empty());
  ASSERT_EQ(answer.next.size(), 1u);
  EXPECT_EQ(answer.next[0].token, FakeModel::ArgMax(Tokens{9}));
}

TEST(Echo, AsksNoRowBeforeTheFirstPosition) {
  const EchoQuestion question{.tokens = {3, 1, 4, 1, 5}, .first_position = 3};
  const protocol::Work work = Plan(question);
  ASSERT_EQ(work.sequences[0].rows.size(), 2u);
  EXPECT_EQ(work.sequences[0].rows[0].position, 2);
  EXPECT_EQ(Ask(question).positions.size(), 2u);
}

TEST(Echo, OfOneTokenHasNoPositions) { EXPECT_TRUE(Ask({.tokens = {9}}).positions.empty()); }

TEST(Echo, ThatCannotBeAskedIsNamed) {
  const auto message = [](const EchoQuestion& question) {
    protocol::Work work;
    return base::MessageOf(PlanEcho(question, work));
  };
  EXPECT_THAT(message({.tokens = {}}), HasSubstr("tokens is empty"));
  EXPECT_THAT(message({.tokens = {1}, .top_count = -1}), HasSubstr("top_count is -1"));
  EXPECT_THAT(message({.tokens = {1}, .first_position = 0}), HasSubstr("first_position is 0"));
  EXPECT_THAT(message({.tokens = {1}, .first_position = 2}), HasSubstr("not in 1..1"));
}

TEST(Echo, ReportsLogitsThatAreNotFinite) {
  const EchoQuestion question{.tokens = {1, 2, 3}, .top_count = 2, .next_token = true};
  const protocol::SequenceResult good = FakeModel::Run(Plan(question))[0];
  const auto message = [&](const protocol::SequenceResult& result) {
    return base::MessageOf(ReadEcho(question, result).status());
  };
  protocol::SequenceResult bad = good;
  bad.rows[1].top[1].logit = std::numeric_limits<float>::infinity();
  EXPECT_THAT(message(bad), HasSubstr("not finite (prompt position 1)"));
  bad = good;
  bad.rows[2].log_sum_exp = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(message(bad), HasSubstr("not finite (prompt position 2)"));
}

}  // namespace
}  // namespace zp::scoring
