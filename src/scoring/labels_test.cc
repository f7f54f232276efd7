#include <cmath>
#include <limits>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scoring/fake_model.h"
#include "scoring/scoring.h"

namespace zp::scoring {
namespace {

using protocol::SequenceResult;
using protocol::Work;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

LabelAnswer Ask(const LabelQuestion& question) {
  Work work;
  EXPECT_TRUE(PlanLabels(question, work).ok());
  EXPECT_EQ(work.sequences.size(), LabelSequenceCount(question));
  absl::StatusOr<LabelAnswer> answer = ReadLabels(question, FakeModel::Run(work));
  EXPECT_TRUE(answer.ok()) << answer.status();
  return *std::move(answer);
}

// What the header promises, word for word: every label by the chain rule, then normalised.
std::vector<double> BruteForce(const LabelQuestion& question) {
  std::vector<double> log_probs;
  double sum = 0;
  for (const Tokens& label : question.labels) {
    log_probs.push_back(FakeModel::LogProb(question.prompt, label));
    sum += std::exp(log_probs.back());
  }
  if (question.normalization == Normalization::kLabels) {
    for (double& log_prob : log_probs) {
      log_prob -= std::log(sum);
    }
  }
  return log_probs;
}

void ExpectBruteForce(const LabelQuestion& question) {
  const LabelAnswer answer = Ask(question);
  const std::vector<double> expected = BruteForce(question);
  ASSERT_EQ(answer.log_probs.size(), expected.size());
  for (size_t label = 0; label < expected.size(); ++label) {
    EXPECT_NEAR(answer.log_probs[label], expected[label], 1e-6) << "label " << label;
    EXPECT_LE(answer.log_probs[answer.best_label], 0.0);
    EXPECT_GE(answer.log_probs[answer.best_label], answer.log_probs[label]);
  }
}

TEST(Labels, OfOneTokenAreOneRowOfOneSequence) {
  Work work;
  ASSERT_TRUE(PlanLabels({.prompt = {1, 2, 3}, .labels = {{7}, {5}}}, work).ok());
  ASSERT_EQ(work.sequences.size(), 1u);
  ASSERT_EQ(work.sequences[0].rows.size(), 1u);
  const protocol::RowAsk& row = work.sequences[0].rows[0];
  EXPECT_EQ(row.position, 2);
  EXPECT_EQ(row.columns, (Tokens{7, 5}));
  EXPECT_FALSE(row.full_vocabulary);
}

TEST(Labels, OfOneTokenMatchTheChainRule) {
  for (const Normalization normalization : {Normalization::kLabels, Normalization::kVocabulary}) {
    ExpectBruteForce({.prompt = {4}, .labels = {{7}}, .normalization = normalization});
    ExpectBruteForce(
        {.prompt = {1, 2, 3}, .labels = {{7}, {5}, {0}, {22}}, .normalization = normalization});
  }
}

TEST(Labels, OfSeveralTokensMatchTheChainRule) {
  for (const Normalization normalization : {Normalization::kLabels, Normalization::kVocabulary}) {
    ExpectBruteForce({.prompt = {1, 2, 3},
                      .labels = {{7, 8, 9}, {5}, {7, 8, 10}, {7}, {7, 8}},
                      .normalization = normalization});
    ExpectBruteForce({.prompt = {9}, .labels = {{1, 1, 1, 1}}, .normalization = normalization});
  }
}

TEST(Labels, DoNotForwardTheirLastToken) {
  Work work;
  ASSERT_TRUE(PlanLabels({.prompt = {1, 2}, .labels = {{7, 8, 9}, {5}}}, work).ok());
  EXPECT_EQ(work.sequences[0].tokens, (Tokens{1, 2, 7, 8}));
  EXPECT_EQ(work.sequences[1].tokens, (Tokens{1, 2}));
}

TEST(Labels, NormalisedOverThemselvesSumToOne) {
  const LabelAnswer answer = Ask({.prompt = {3, 1}, .labels = {{2, 2}, {2}, {6, 1, 1}}});
  const double sum = std::accumulate(
      answer.log_probs.begin(), answer.log_probs.end(), 0.0, [](double total, double log_prob) {
        return total + std::exp(log_prob);
      });
  EXPECT_NEAR(sum, 1.0, 1e-12);
}

TEST(Labels, AreAppendedAfterWhatIsThere) {
  Work work;
  ASSERT_TRUE(PlanLabels({.prompt = {1}, .labels = {{7}, {5}}}, work).ok());
  ASSERT_TRUE(PlanLabels({.prompt = {2}, .labels = {{7, 1}, {5}}}, work).ok());
  EXPECT_EQ(work.sequences.size(), 3u);
}

TEST(Labels, TieGoesToTheFirst) {
  const LabelQuestion question{.prompt = {1}, .labels = {{7}, {5}, {3}}};
  const std::vector<SequenceResult> results{{.rows = {{.column_logits = {1.0f, 2.0f, 2.0f}}}}};
  EXPECT_EQ(ReadLabels(question, results)->best_label, 1);
}

TEST(Labels, SurviveLogitsThatOverflowAnExponential) {
  const LabelQuestion question{.prompt = {1}, .labels = {{7}, {5}}};
  const std::vector<SequenceResult> results{{.rows = {{.column_logits = {3000.0f, -3000.0f}}}}};
  EXPECT_EQ(ReadLabels(question, results)->log_probs, (std::vector<double>{0.0, -6000.0}));
}

void ExpectInvalid(const LabelQuestion& question, const std::string& message) {
  Work work;
  const absl::Status status = PlanLabels(question, work);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(base::MessageOf(status), HasSubstr(message));
  EXPECT_TRUE(work.sequences.empty());
}

TEST(Labels, ThatCannotBeAskedAreNamed) {
  ExpectInvalid({.prompt = {}, .labels = {{1}}}, "prompt is empty");
  ExpectInvalid({.prompt = {1}, .labels = {}}, "labels is empty");
  ExpectInvalid({.prompt = {1}, .labels = {{1}, {2}, {}}}, "labels[2] is empty");
  ExpectInvalid({.prompt = {1}, .labels = {{1}, {2, 3}, {4}, {2, 3}}},
                "labels[1] and labels[3] are the same tokens");
}

TEST(Labels, ReportLogitsThatAreNotFinite) {
  const LabelQuestion single{.prompt = {1, 2, 3}, .labels = {{7}, {5}}};
  const std::vector<SequenceResult> one_row{{.rows = {{.column_logits = {1.0f, kNan}}}}};
  const absl::Status status = ReadLabels(single, one_row).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("not finite (prompt position 2)"));

  const LabelQuestion several{.prompt = {1, 2, 3}, .labels = {{7, 8}, {5}}};
  Work work;
  ASSERT_TRUE(PlanLabels(several, work).ok());
  std::vector<SequenceResult> results = FakeModel::Run(work);
  results[0].rows[1].log_sum_exp = std::numeric_limits<float>::infinity();
  EXPECT_THAT(base::MessageOf(ReadLabels(several, results).status()),
              HasSubstr("not finite (prompt position 3)"));
}

TEST(Labels, RefuseAnAnswerOfTheWrongShape) {
  const LabelQuestion question{.prompt = {1}, .labels = {{7}, {5}}};
  EXPECT_FALSE(ReadLabels(question, {}).ok());
  const std::vector<SequenceResult> no_rows(1);
  EXPECT_FALSE(ReadLabels(question, no_rows).ok());
  const std::vector<SequenceResult> one_column{{.rows = {{.column_logits = {1.0f}}}}};
  EXPECT_FALSE(ReadLabels(question, one_column).ok());
}

}  // namespace
}  // namespace zp::scoring
