#include "text/normal_form.h"

#include "gtest/gtest.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

std::string Normal(std::string_view text, NormalForm form) {
  return Normalize(text, form).value_or(std::string(text));
}

TEST(NormalForm, LeavesNormalTextAlone) {
  EXPECT_EQ(Normalize("plain, naïve 日本語 한국어", NormalForm::kNfc), std::nullopt);
}

TEST(NormalForm, ComposesAndDecomposes) {
  EXPECT_EQ(Normal("Cafe\u0301!", NormalForm::kNfc), "Caf\u00e9!");
  EXPECT_EQ(Normal("Caf\u00e9!", NormalForm::kNfd), "Cafe\u0301!");
  EXPECT_EQ(Normal("ﬁ x²", NormalForm::kNfkc), "fi x2");
  EXPECT_EQ(Normal("\u1e9b\u0323", NormalForm::kNfkd), "s\u0323\u0307");
  EXPECT_EQ(Normal("\u1112\u1161\u11ab", NormalForm::kNfc), "\ud55c");
}

TEST(NormalForm, OrdersMarksByClass) {
  EXPECT_EQ(Normal("e\u0301\u0316", NormalForm::kNfc), "\u00e9\u0316");
  EXPECT_EQ(Normal("q\u0301\u0316", NormalForm::kNfc), "q\u0316\u0301");
}

TEST(NormalForm, DoesNotMoveMarksThatCameAfterUnicode9) {
  EXPECT_EQ(Normal("q\u0301\u0898\u0316", NormalForm::kNfc), "q\u0301\u0898\u0316");
}

TEST(Utf8, EveryMaximalPartOfABrokenSequenceIsReplacedOnce) {
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(ReplaceInvalidUtf8("a\xff"), "a" + r);
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x9f\x98"), r);
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x9f\x98x"), r + "x");
  EXPECT_EQ(ReplaceInvalidUtf8("\xc0\xaf"), r + r);
  EXPECT_EQ(ReplaceInvalidUtf8("\xed\xa0\x80"), r + r + r);
  EXPECT_EQ(ReplaceInvalidUtf8("\xf4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(ReplaceInvalidUtf8("é😀"), "é😀");
}

}  // namespace
}  // namespace zp::text
