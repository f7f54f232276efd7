#include "text/tokenizer.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::text {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Testdata(const std::string& name) {
  const char* source_dir = std::getenv("ZP_SOURCE_DIR");
  return fmt::format("{}/src/text/testdata/{}", source_dir == nullptr ? "." : source_dir, name);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::unique_ptr<Tokenizer> LoadFlags() {
  auto tokenizer = Tokenizer::Load(Testdata("flags_tokenizer.json"));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// A model of a, b and ab between what `parts` adds.
std::string Minimal(const std::string& parts, const std::string& merges = R"(["a b"])") {
  return fmt::format(
      R"({{{} "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1, "ab": 2, "c": 3}},
          "merges": {}}}}})",
      parts,
      merges);
}

absl::Status StatusOf(const std::string& json) {
  return Tokenizer::Parse(json, "broken.json").status();
}

TEST(Tokenizer, MergesPairsInTheOrderOfTheirRanks) {
  const auto tokenizer = Tokenizer::Parse(Minimal(""), "minimal");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("aabcab", false), ElementsAre(0, 2, 3, 2));
  EXPECT_THAT((*tokenizer)->Encode("axb", false), ElementsAre(2)) << "no unk_token: left out";
}

TEST(Tokenizer, AcceptsMergesAsPairs) {
  const auto tokenizer = Tokenizer::Parse(Minimal("", R"([["a", "b"]])"), "minimal");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("ab", false), ElementsAre(2));
}

TEST(Tokenizer, FramesTheTextOnlyOnRequest) {
  const auto tokenizer = LoadFlags();
  const TokenId begin = tokenizer->FindToken("<s>");
  const TokenId end = tokenizer->FindToken("</s>");
  EXPECT_THAT(tokenizer->Encode("", true), ElementsAre(begin, end));
  EXPECT_THAT(tokenizer->Encode("", false), ElementsAre());
}

TEST(Tokenizer, DecodesWhatItEncoded) {
  const auto tokenizer = LoadFlags();
  const std::string text = "Größe: 日本語 😀\n\ttotal += 12;  it's";
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, false), false), text);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, true), true), text);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, true), false), "<s>" + text + "</s>");
}

TEST(Tokenizer, DecodesByteFallbackAndPrependedSpace) {
  const auto tokenizer = Tokenizer::Load(Testdata("fallback_tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = "The dog, 日本 naïve";
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text, true), false), text);
}

TEST(Tokenizer, TokenBytesOfATextGluedTogetherAreTheText) {
  const auto tokenizer = LoadFlags();
  const std::string text = "naïve 日本語";
  std::string glued;
  for (const TokenId token : tokenizer->Encode(text, false)) glued += tokenizer->TokenBytes(token);
  EXPECT_EQ(glued, text);
}

TEST(Tokenizer, IdsOutsideTheVocabularyGiveNothing) {
  const auto tokenizer = LoadFlags();
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
  EXPECT_EQ(tokenizer->TokenBytes(static_cast<TokenId>(tokenizer->vocab_count())), "");
  EXPECT_EQ(tokenizer->Decode({-7, 1 << 30}, false), "");
}

TEST(Tokenizer, FindsTokensByTheirContent) {
  const auto tokenizer = LoadFlags();
  const TokenId mask = tokenizer->FindToken("<mask>");
  EXPECT_EQ(tokenizer->TokenBytes(mask), "<mask>");
  EXPECT_LT(mask, tokenizer->vocab_count());
  EXPECT_EQ(tokenizer->FindToken("no such token"), -1);
}

TEST(Tokenizer, BrokenUtf8CountsAsReplacementCharacters) {
  const auto tokenizer = LoadFlags();
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(tokenizer->Encode("a\xff b\xe2\x82 c\xed\xa0\x80", false),
            tokenizer->Encode("a" + r + " b" + r + " c" + r + r + r, false));
}

TEST(Tokenizer, AWordOfMegabytesTakesNoQuadraticTime) {
  const auto tokenizer = LoadFlags();
  for (const std::string unit : {"a", " ", "\u0301\u0316", "qu", "日"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, false), false).size() > 0, true);
  }
}

TEST(Tokenizer, LongAndShortWordsMergeAlike) {
  // "abab..." of any length is "ab" over and over: scanning, the heap and the buckets agree.
  const auto tokenizer = Tokenizer::Parse(Minimal(""), "minimal");
  ASSERT_TRUE(tokenizer.ok());
  for (const size_t count : {5, 32, 33, 5000, 8192, 8193, 20000}) {
    std::string text;
    for (size_t i = 0; i < count; ++i) text += "ab";
    EXPECT_EQ((*tokenizer)->Encode(text, false), std::vector<TokenId>(count, 2)) << count;
  }
}

TEST(Tokenizer, ManyThreadsGetTheSameTokens) {
  const auto tokenizer = LoadFlags();
  const std::string text = ReadFile(Testdata("flags_tokenizer.json"));
  const std::vector<TokenId> expected = tokenizer->Encode(text, true);
  std::vector<std::vector<TokenId>> results(4);
  std::vector<std::jthread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] { result = tokenizer->Encode(text, true); });
  }
  threads.clear();
  EXPECT_THAT(results, testing::Each(expected));
}

TEST(TokenizerErrors, NameTheFileAndThePart) {
  const absl::Status status = StatusOf(Minimal("", R"(["a b", "a d"])"));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("broken.json: tokenizer.model.merges: [1]"));
  EXPECT_THAT(base::MessageOf(status), HasSubstr("\"d\""));
}

TEST(TokenizerErrors, AMissingFileIsNotFound) {
  EXPECT_EQ(Tokenizer::Load("/no/such/tokenizer.json").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(TokenizerErrors, BrokenJsonIsInvalid) {
  EXPECT_THAT(base::MessageOf(StatusOf(R"({"model": )")), HasSubstr("broken.json: not JSON"));
  EXPECT_THAT(base::MessageOf(StatusOf(std::string(100, '['))), HasSubstr("not JSON"));
  EXPECT_THAT(base::MessageOf(StatusOf("[]")), HasSubstr("must be an object"));
  EXPECT_THAT(base::MessageOf(StatusOf("{}")), HasSubstr("lacks \"model\""));
}

TEST(TokenizerErrors, WhatIsUnknownIsUnimplemented) {
  for (const std::string parts : {
           R"("normalizer": {"type": "Nmt"},)",
           R"("pre_tokenizer": {"type": "UnicodeScripts"},)",
           R"("post_processor": {"type": "Other"},)",
           R"("decoder": {"type": "CTC"},)",
           R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a*)*"},
               "behavior": "Isolated", "invert": false},)",
       }) {
    const absl::Status status = StatusOf(Minimal(parts));
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(base::MessageOf(status), HasSubstr("broken.json: tokenizer."));
  }
  EXPECT_EQ(StatusOf(R"({"model": {"type": "Unigram", "vocab": []}})").code(),
            absl::StatusCode::kUnimplemented);
}

TEST(TokenizerErrors, AnIdBeyondTheLimitIsInvalid) {
  const absl::Status status = StatusOf(R"({"model": {"vocab": {"a": 2000000000}, "merges": []}})");
  EXPECT_THAT(base::MessageOf(status), HasSubstr("needs an id from 0 to 4194303"));
}

// Random damage to a valid file gives an error or a tokenizer, never a crash.
TEST(TokenizerErrors, DamagedFilesNeverCrash) {
  std::mt19937 random(1);
  for (const char* name : {"flags_tokenizer.json", "fallback_tokenizer.json"}) {
    const std::string valid = ReadFile(Testdata(name));
    const size_t model_at = valid.find("\"model\"");
    for (int i = 0; i < 1500; ++i) {
      std::string json = valid;
      for (uint32_t damage = 0; damage < 1 + random() % 4; ++damage) {
        // Mostly before the model: the vocabulary is large and dull.
        const size_t range = random() % 4 == 0 ? json.size() : std::min(model_at, json.size());
        const size_t at = random() % range;
        switch (random() % 4) {
          case 0:
            json[at] = static_cast<char>(random());
            break;
          case 1:
            json.erase(at, random() % 12);
            break;
          case 2:
            json.insert(at, json.substr(random() % json.size(), random() % 24));
            break;
          default:
            json[at] = "0123456789{}[]\"\\:,.*+?()|^$-<>&"[random() % 31];
        }
      }
      const auto tokenizer = Tokenizer::Parse(json, "damaged.json");
      if (tokenizer.ok()) (*tokenizer)->Encode("a <mask> b_c==d 12 It's é\xff\n\n x", true);
    }
  }
}

}  // namespace
}  // namespace zp::text
