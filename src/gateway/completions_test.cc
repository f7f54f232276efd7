#include "fmt/format.h"
#include "gateway/fake_model.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;

double MaxOf(const json::value& top) {
  double max = -1e300;
  for (const auto& entry : top.as_object()) {
    max = std::max(max, entry.value().as_double());
  }
  return max;
}

TEST(Completions, AnswersAsTheEvaluationHarnessReadsIt) {
  TestService test;
  const Answer answer =
      test.Post("/v1/completions",
                R"({"model":"fake","prompt":[[72,101,108,108,111]],"temperature":0,"max_tokens":1,
          "logprobs":1,"seed":1234,"echo":true})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const json::value& choice = answer.body.at("choices").at(0);
  EXPECT_EQ(choice.at("index").as_int64(), 0);
  const json::value& logprobs = choice.at("logprobs");
  const auto& token_logprobs = logprobs.at("token_logprobs").as_array();
  const auto& top_logprobs = logprobs.at("top_logprobs").as_array();
  ASSERT_EQ(token_logprobs.size(), 6u);  // the prompt's tokens and the next one
  ASSERT_EQ(top_logprobs.size(), 6u);
  ASSERT_EQ(logprobs.at("tokens").as_array().size(), 6u);
  ASSERT_EQ(logprobs.at("text_offset").as_array().size(), 6u);
  EXPECT_TRUE(token_logprobs[0].is_null());
  const std::string text = "Hello";
  for (size_t i = 1; i < 5; ++i) {
    const std::string prefix = text.substr(0, i);
    EXPECT_EQ(token_logprobs[i].as_double(),
              FakeLogProb(prefix, static_cast<unsigned char>(text[i])));
    EXPECT_FALSE(top_logprobs[i].as_object().empty());
    EXPECT_GE(MaxOf(top_logprobs[i]), token_logprobs[i].as_double());
    EXPECT_EQ(logprobs.at("tokens").at(i).as_string(), text.substr(i, 1));
    EXPECT_EQ(logprobs.at("text_offset").at(i).as_int64(), static_cast<int64_t>(i));
  }
  EXPECT_EQ(token_logprobs[5].as_double(), MaxOf(top_logprobs[5]));
  EXPECT_EQ(answer.body.at("usage").at("prompt_tokens").as_int64(), 5);
  EXPECT_EQ(answer.body.at("usage").at("completion_tokens").as_int64(), 0);
}

TEST(Completions, AGreedyTokenEqualsTheMaximumBitByBit) {
  TestService test;
  const std::vector<float> logits = FakeLogits(std::vector<protocol::TokenId>{'a'});
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  const Answer answer = test.Post(
      "/v1/completions",
      fmt::format(R"({{"prompt":[97,{}],"max_tokens":0,"logprobs":1,"echo":true}})", best));
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const json::value& logprobs = answer.body.at("choices").at(0).at("logprobs");
  ASSERT_EQ(logprobs.at("token_logprobs").as_array().size(), 2u);  // no next token
  EXPECT_EQ(logprobs.at("token_logprobs").at(1).as_double(),
            MaxOf(logprobs.at("top_logprobs").at(1)));
}

TEST(Completions, NothingToTellOfThePromptIsStillAnAnswer) {
  TestService test;
  const Answer one_token =
      test.Post("/v1/completions", R"({"prompt":[97],"max_tokens":0,"logprobs":1,"echo":true})");
  ASSERT_EQ(one_token.status(), 200) << one_token.response.body;
  const json::value& choice = one_token.body.at("choices").at(0);
  EXPECT_EQ(choice.at("text").as_string(), "a");
  EXPECT_EQ(json::serialize(choice.at("logprobs").at("token_logprobs")), "[null]");
  const Answer no_logprobs =
      test.Post("/v1/completions", R"({"prompt":"ab","max_tokens":0,"echo":true})");
  ASSERT_EQ(no_logprobs.status(), 200) << no_logprobs.response.body;
  EXPECT_TRUE(no_logprobs.body.at("choices").at(0).at("logprobs").is_null());
}

TEST(Completions, ManyPromptsAreManyChoicesInOrder) {
  TestService test;
  const Answer answer = test.Post(
      "/v1/completions", R"({"prompt":["one","two"],"max_tokens":0,"logprobs":0,"echo":true})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  EXPECT_EQ(answer.body.at("choices").at(0).at("text").as_string(), "one");
  EXPECT_EQ(answer.body.at("choices").at(1).at("text").as_string(), "two");
  EXPECT_EQ(answer.body.at("choices").at(1).at("index").as_int64(), 1);
  EXPECT_EQ(test.sink.submit_count(), 1);
}

TEST(Completions, TokensWithTheSameTextKeepTheHigherValue) {
  TestService test;
  // Half of the tokens are pieces of characters, all written as U+FFFD.
  const Answer answer =
      test.Post("/v1/completions", R"({"prompt":"a","max_tokens":1,"logprobs":20,"echo":false})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const json::value& logprobs = answer.body.at("choices").at(0).at("logprobs");
  ASSERT_EQ(logprobs.at("tokens").as_array().size(), 1u);
  double best = -1e300;
  for (int token = 128; token < 256; ++token) {
    best = std::max(best, FakeLogProb("a", static_cast<unsigned char>(token)));
  }
  EXPECT_EQ(logprobs.at("top_logprobs").at(0).at("\xEF\xBF\xBD").as_double(), best);
}

TEST(Completions, NamedTokensComeBackExactly) {
  TestService test;
  const Answer answer =
      test.Post("/v1/completions",
                R"({"prompt":["a","b"],"max_tokens":1,"logprobs":1,"logprob_token_ids":[65,66]})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const auto& top =
      answer.body.at("choices").at(1).at("logprobs").at("top_logprobs").at(0).as_object();
  ASSERT_EQ(top.size(), 2u);
  EXPECT_EQ(top.at("B").as_double(), FakeLogProb("b", 'B'));
}

TEST(Completions, OffsetsCountCharacters) {
  TestService test;
  const Answer answer = test.Post(
      "/v1/completions", R"({"prompt":"\u00e9x","max_tokens":0,"logprobs":1,"echo":true})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const json::value& choice = answer.body.at("choices").at(0);
  EXPECT_EQ(choice.at("text").as_string(), "\xC3\xA9x");
  EXPECT_EQ(json::serialize(choice.at("logprobs").at("text_offset")), "[0,1,1]");
}

TEST(Completions, WhatWouldNeedGenerationIsRefused) {
  TestService test;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"prompt":"a"})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":5})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":-1})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":"1"})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":0})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":1,"stream":true})", "stream"},
      {R"({"prompt":"a","max_tokens":1,"n":2})", "n"},
      {R"({"prompt":"a","max_tokens":1,"n":1e12})", "n"},
      {R"({"prompt":"a","max_tokens":1,"best_of":3})", "best_of"},
      {R"({"prompt":"a","max_tokens":1,"suffix":"x"})", "suffix"},
      {R"({"prompt":"a","max_tokens":1,"logit_bias":{"1":2}})", "logit_bias"},
      {R"({"prompt":"a","max_tokens":1,"prompt_logprobs":1})", "prompt_logprobs"},
      {R"({"prompt":"a","max_tokens":1,"temperature":"hot"})", "temperature"},
      {R"({"prompt":"a","max_tokens":1,"logprobs":21})", "logprobs"},
      {R"({"prompt":"a","max_tokens":1,"logprobs":-1})", "logprobs"},
      {R"({"prompt":"a","max_tokens":1,"echo":"yes"})", "echo"},
      {R"({"prompt":"a","max_tokens":1,"logprob_token_ids":[1]})", "logprob_token_ids"},
      {R"({"max_tokens":1})", "prompt"},
      {R"({"prompt":"","max_tokens":1})", "prompt"},
      {R"({"prompt":[],"max_tokens":1})", "prompt"},
      {R"({"prompt":[[]],"max_tokens":1})", "prompt[0]"},
      {R"({"prompt":{"a":1},"max_tokens":1})", "prompt"},
      {R"({"prompt":[1,257],"max_tokens":1})", "prompt[1]"},
      {R"({"prompt":[1,-1],"max_tokens":1})", "prompt[1]"},
  };
  for (const auto& [body, field] : cases) {
    const Answer answer = test.Post("/v1/completions", body);
    EXPECT_EQ(answer.status(), 400) << body;
    EXPECT_EQ(answer.param(), field) << answer.error();
  }
  EXPECT_EQ(test.sink.submit_count(), 0);
}

TEST(Completions, ManyAlternativesAreBounded) {
  TestService test;
  std::string prompt = "[";
  for (int i = 0; i < 60; ++i) {
    prompt += i == 0 ? "65" : ",65";
  }
  prompt += "]";
  std::string prompts;
  for (int i = 0; i < 2'000; ++i) {
    prompts += (i == 0 ? "" : ",") + prompt;
  }
  const auto post = [&](int logprobs) {
    return test.Post(
        "/v1/completions",
        fmt::format(
            R"({{"prompt":[{}],"max_tokens":0,"echo":true,"logprobs":{}}})", prompts, logprobs));
  };
  const Answer refused = post(20);
  EXPECT_EQ(refused.status(), 400);
  EXPECT_NE(refused.error().find("4194304 log-probabilities"), std::string::npos)
      << refused.error();
  EXPECT_EQ(test.sink.submit_count(), 0);
  EXPECT_EQ(post(1).status(), 200);
}

}  // namespace
}  // namespace zp::gateway
