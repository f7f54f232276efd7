#include "apps/load_report.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace zp::apps {
namespace {

TimedAnswer At(int status, double done_s) { return {.status = status, .done_s = done_s}; }

TEST(LoadReport, ArrivalsComeAsOftenAsAsked) {
  std::mt19937_64 random(1);
  const std::vector<double> times = PoissonTimes(50, 1000, random);
  EXPECT_TRUE(std::ranges::is_sorted(times));
  EXPECT_LT(times.back(), 1000);
  EXPECT_NEAR(static_cast<double>(times.size()), 50'000, 5 * 224);  // five standard deviations
}

TEST(LoadReport, TheRateOfAnswersThatComeInPassesIsThatOfThePasses) {
  std::vector<TimedAnswer> answers;
  for (int pass = 0; pass < 40; ++pass) {
    for (int i = 0; i < 64; ++i) {
      answers.push_back(At(200, 0.5 * pass));
    }
    answers.push_back(At(429, 0.5 * pass));
  }
  EXPECT_NEAR(AnswersPerSecond(answers, 0, 100), 128, 0.5);
  EXPECT_NEAR(AnswersPerSecond(answers, 0.3, 11.7), 128, 1);
  EXPECT_EQ(AnswersPerSecond(answers, 200, 300), 0);
}

TEST(LoadReport, ARefusalIsRightWhereAllBeforeItAreAnsweredThen) {
  std::vector<TimedAnswer> answers = {At(200, 4), At(200, 12), At(429, 2), At(200, 14), At(429, 4)};
  answers[2].retry_s = 10;
  answers[4].retry_s = 4;
  const std::vector<Refusal> refusals = RefusalsOf(answers);
  ASSERT_EQ(refusals.size(), 2U);
  EXPECT_EQ(refusals[0].true_s, 10);
  EXPECT_EQ(refusals[1].true_s, 10);
  const boost::json::object report = ReportRefusals(refusals);
  EXPECT_EQ(report.at("within_30_percent").as_double(), 0.5);
}

}  // namespace
}  // namespace zp::apps
