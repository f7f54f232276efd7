#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

using Piece = std::pair<std::string, bool>;
using testing::ElementsAre;

std::vector<Piece> Pieces(const Regex& regex, std::string_view text) {
  std::vector<Piece> pieces;
  regex.ForEachPiece(
      text, [&](std::string_view piece, bool is_match) { pieces.emplace_back(piece, is_match); });
  return pieces;
}

std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  std::vector<std::string> matches;
  if (!regex.ok()) return matches;
  for (auto& [piece, is_match] : Pieces(*regex, text)) {
    if (is_match) matches.push_back(std::move(piece));
  }
  return matches;
}

// The judge: PCRE2 with Unicode properties, where it means the same as Oniguruma.
std::vector<Piece> JudgePieces(const std::string& pattern, std::string_view text) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                    pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
                    &error,
                    &offset,
                    nullptr),
      &pcre2_code_free);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code.get(), nullptr), &pcre2_match_data_free);
  std::vector<Piece> pieces;
  size_t covered = 0;
  while (covered < text.size() && pcre2_match(code.get(),
                                              reinterpret_cast<PCRE2_SPTR>(text.data()),
                                              text.size(),
                                              covered,
                                              PCRE2_NOTEMPTY,
                                              match.get(),
                                              nullptr) > 0) {
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
    if (bounds[0] > covered) pieces.emplace_back(text.substr(covered, bounds[0] - covered), false);
    pieces.emplace_back(text.substr(bounds[0], bounds[1] - bounds[0]), true);
    covered = bounds[1];
  }
  if (covered < text.size()) pieces.emplace_back(text.substr(covered), false);
  return pieces;
}

std::string RandomText(std::mt19937& random) {
  static const std::vector<std::string> parts = {
      "a", "b",      "ab",     "B",      "s",      "S",  "ſ",  "'",  "'s", "'LL", "'re",
      " ", "  ",     "\n",     "\r\n",   "\t",     "1",  "22", "½",  "٣",  "é",   "e\u0301",
      "Ü", "ǅ",      "ʰ",      "日",     "語",     "한", ".",  "!?", "-",  "/",   "€",
      "😀", "\u00a0", "\u3000", "\u2028", "\u0085", "x",  "_",  "0",  "Σ",  "ß"};
  std::string text;
  for (uint32_t i = 0; i < random() % 24; ++i) text += parts[random() % parts.size()];
  return text;
}

TEST(Regex, SplitsAsTheJudgeDoesOnThePatternsOfKnownTokenizers) {
  const std::vector<std::string> patterns = {
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
      R"([!-/][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+)",
  };
  std::mt19937 random(7);
  for (const std::string& pattern : patterns) {
    const auto regex = Regex::Compile(pattern);
    ASSERT_TRUE(regex.ok()) << regex.status();
    for (int i = 0; i < 3000; ++i) {
      const std::string text = RandomText(random);
      ASSERT_EQ(Pieces(*regex, text), JudgePieces(pattern, text)) << pattern << "\n" << text;
    }
  }
}

// Alternations, groups and repeats put together at random.
std::string RandomPattern(std::mt19937& random, int depth) {
  static const std::vector<std::string> atoms = {"a",
                                                 "b",
                                                 R"(\s)",
                                                 R"(\p{L})",
                                                 "[ab]",
                                                 R"([^\sab])",
                                                 R"(\d)",
                                                 ".",
                                                 "'",
                                                 R"((?i:s))",
                                                 R"([\S1])"};
  static const std::vector<std::string> repeats = {
      "", "", "", "+", "*", "?", "{1,2}", "+?", "++", "*+"};
  std::string pattern;
  for (uint32_t i = 0; i < 1 + random() % 3; ++i) {
    switch (depth > 0 ? random() % 8 : 0) {
      case 1:
        pattern += "(?:a|" + RandomPattern(random, depth - 1) + "b)" + (random() % 2 ? "+" : "");
        break;
      case 2:
        pattern += "(?=" + RandomPattern(random, depth - 1) + ")";
        break;
      case 3:
        pattern += R"((?!\S)\s)";
        break;
      case 4:
        pattern += R"((?<!a))" + atoms[random() % atoms.size()];
        break;
      case 5:
        pattern += "(?>" + RandomPattern(random, depth - 1) + ")";
        break;
      default:
        pattern += atoms[random() % atoms.size()] + repeats[random() % repeats.size()];
    }
  }
  if (depth > 0 && random() % 2 == 0) pattern += "|" + RandomPattern(random, depth - 1);
  return pattern;
}

TEST(Regex, SplitsAsTheJudgeDoesOnRandomPatterns) {
  std::mt19937 random(11);
  int judged = 0;
  for (int i = 0; i < 1500; ++i) {
    // A last character makes sure that no match is empty, where the two have different manners.
    const std::string pattern = "(?:" + RandomPattern(random, 2) + ")[a-z ]";
    const auto regex = Regex::Compile(pattern);
    if (absl::IsUnimplemented(regex.status())) continue;  // a repeat of what may be empty
    ++judged;
    ASSERT_TRUE(regex.ok()) << pattern << ": " << regex.status();
    for (int j = 0; j < 40; ++j) {
      const std::string text = RandomText(random);
      ASSERT_EQ(Pieces(*regex, text), JudgePieces(pattern, text)) << pattern << "\n" << text;
    }
  }
  EXPECT_GE(judged, 1200) << "too many of the patterns are refused";
}

TEST(Regex, KnowsUnicode16AndOnigurumasEscapes) {
  EXPECT_THAT(Matches(R"(\p{L}+)", "\U00031350 \u1c89"), ElementsAre("\U00031350", "\u1c89"));
  EXPECT_THAT(Matches(R"(\s+)", "a\u180e\u0085b"), ElementsAre("\u0085")) << "U+180E is no space";
  EXPECT_THAT(Matches(R"(\h+)", "xfF0g"), ElementsAre("fF0")) << "a hexadecimal digit";
  EXPECT_THAT(Matches(R"(\v)", "\n\v"), ElementsAre("\v"));
  EXPECT_THAT(Matches(R"(\w+)", "a½_-b"), ElementsAre("a½_", "b"));
  EXPECT_THAT(Matches("(?i:k)", "kK\u212a"), ElementsAre("k", "K", "\u212a"));
  EXPECT_THAT(Matches(R"(\p{Han}+)", "漢字かな"), ElementsAre("漢字"));
}

TEST(Regex, CoversTheTextWithMatchesAndGaps) {
  const auto regex = Regex::Compile("b+");
  ASSERT_TRUE(regex.ok());
  EXPECT_THAT(Pieces(*regex, "abbc"),
              ElementsAre(Piece("a", false), Piece("bb", true), Piece("c", false)));
  EXPECT_THAT(Pieces(*regex, ""), ElementsAre());
}

TEST(Regex, WhatItDoesNotUnderstandIsAnError) {
  for (const char* pattern : {"(",
                              ")",
                              "[a",
                              "a{2,1}",
                              "*",
                              R"(\p{Nonsense})",
                              R"(\1)",
                              "[[:alpha:]]",
                              "[a&&b]",
                              "(?<=ab)c",
                              "(a*)+",
                              "\\",
                              R"(\x{110000})",
                              "(?s:a)",
                              "a{1,2}+"}) {
    EXPECT_FALSE(Regex::Compile(pattern).ok()) << pattern;
  }
  EXPECT_FALSE(Regex::Compile(std::string(1000, '(')).ok());
  EXPECT_FALSE(Regex::Compile("((((((a{1000}){1000}){1000}){1000}){1000}){1000})").ok());
}

TEST(Regex, RunawayBacktrackingEndsWithoutMatches) {
  const auto regex = Regex::Compile("(?:a+a+)+b");
  ASSERT_TRUE(regex.ok());
  const std::string text(2000, 'a');
  EXPECT_THAT(Pieces(*regex, text), ElementsAre(Piece(text, false)));
}

}  // namespace
}  // namespace zp::text
