#include "gateway/json_text.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>

#include "boost/json.hpp"
#include "gtest/gtest.h"

namespace zp::gateway {
namespace {

std::string ProblemOf(std::string_view text) {
  const absl::StatusOr<boost::json::value> value = ParseJson(text);
  return value.ok() ? "" : base::MessageOf(value.status());
}

TEST(JsonText, WrittenNumbersReadBackToTheSameDouble) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 10'000; ++i) {
    const double number = std::bit_cast<double>(random());
    if (std::isfinite(number)) {
      EXPECT_EQ(std::strtod(WriteJson(boost::json::value(number)).c_str(), nullptr), number);
    }
  }
}

TEST(JsonText, NumbersLookPlain) {
  EXPECT_EQ(WriteJson({0.5, 1.0, -2.25, 1e-7, 3}), "[0.5,1.0,-2.25,1e-07,3]");
  EXPECT_EQ(WriteJson(std::numeric_limits<double>::infinity()), "null");
}

TEST(JsonText, StringsAreEscaped) {
  EXPECT_EQ(WriteJson(boost::json::value("a\"b\\c\nd\x01 \xC3\xA9")),
            "\"a\\\"b\\\\c\\nd\\u0001 \xC3\xA9\"");
}

TEST(JsonText, BrokenTextIsRefusedWithItsPlace) {
  EXPECT_NE(ProblemOf("{\"a\":}").find("at byte 5"), std::string::npos) << ProblemOf("{\"a\":}");
  EXPECT_EQ(ProblemOf(" \n"), "the JSON is empty");
  EXPECT_NE(ProblemOf("{\"a\":1"), "");
  EXPECT_NE(ProblemOf("{\"a\":1} x"), "");
  EXPECT_NE(ProblemOf("{\"a\":NaN}"), "");
  EXPECT_EQ(ProblemOf("{\"a\":\"é\xFF\"}"),
            "the JSON is broken at byte 8: what is there is not UTF-8");
}

TEST(JsonText, LoneSurrogatesAreRefused) {
  EXPECT_NE(ProblemOf(R"({"a":"\ud800"})"), "");
  EXPECT_NE(ProblemOf(R"({"a":"\udc00"})"), "");
  EXPECT_EQ(ProblemOf(R"({"a":"\ud83d\ude00"})"), "");
}

TEST(JsonText, DepthIsLimited) {
  EXPECT_EQ(ProblemOf(std::string(30, '[') + std::string(30, ']')), "");
  const std::string problem = ProblemOf(std::string(100'000, '['));
  EXPECT_NE(problem.find("deeper than 32 levels"), std::string::npos) << problem;
}

TEST(JsonText, OfADuplicateKeyTheLastCounts) {
  const absl::StatusOr<boost::json::value> value = ParseJson(R"({"a":1,"a":2})");
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(value->at("a").as_int64(), 2);
}

TEST(JsonText, BrokenUtf8BecomesReplacementCharacters) {
  EXPECT_EQ(ToValidUtf8("ok \xC3\xA9 \xF0\x9F\x98\x80"), "ok \xC3\xA9 \xF0\x9F\x98\x80");
  EXPECT_EQ(ToValidUtf8("\xF0\x9F\x98"), "\xEF\xBF\xBD");  // a cut character: one
  EXPECT_EQ(ToValidUtf8("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // surrogate
  EXPECT_EQ(ToValidUtf8("a\xFF\xC3"), "a\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(JsonText, CountsCharactersNotBytes) {
  EXPECT_EQ(CountCharacters("a\xC3\xA9\xF0\x9F\x98\x80"), 3);
}

}  // namespace
}  // namespace zp::gateway
