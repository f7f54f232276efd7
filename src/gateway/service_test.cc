// Routes, errors and the endpoints with little to say: models, tokens, embeddings, loglikelihood.
#include "gateway/service.h"

#include <chrono>
#include <limits>

#include "absl/strings/escaping.h"
#include "gateway/fake_model.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;

std::string HeaderOf(const Response& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    if (key == name) {
      return value;
    }
  }
  return "";
}

TEST(Service, AnswersTheSmallQuestions) {
  TestService test;
  EXPECT_EQ(test.Ask("GET", "/health", "").status(), 200);
  EXPECT_EQ(test.Ask("GET", "/ready", "").status(), 200);
  const Answer models = test.Ask("GET", "/v1/models", "");
  EXPECT_EQ(models.body.at("data").at(0).at("id").as_string(), "fake");
  EXPECT_EQ(models.body.at("data").at(0).at("max_model_len").as_int64(), kFakeMaxTokens);
  EXPECT_NE(test.Ask("GET", "/metrics", "").response.body.find("zeroprefill_requests_total"),
            std::string::npos);
  EXPECT_TRUE(test.Ask("GET", "/tokenizer_info", "").body.is_object());
}

TEST(Service, UnknownPathsAndMethodsAreSaidSo) {
  TestService test;
  const Answer unknown = test.Post("/v1/rerank", "{}");
  EXPECT_EQ(unknown.status(), 404);
  EXPECT_NE(unknown.error().find("/v1/score"), std::string::npos) << unknown.error();
  const Answer wrong = test.Ask("GET", "/v1/score", "");
  EXPECT_EQ(wrong.status(), 405);
  EXPECT_EQ(HeaderOf(wrong.response, "Allow"), "POST");
  EXPECT_EQ(HeaderOf(test.Ask("POST", "/health", "").response, "Allow"), "GET");
}

TEST(Service, AnotherModelsNameIsNotFound) {
  TestService test;
  const Answer answer = test.Post("/v1/classify", R"({"model":"gpt","input":"x","labels":["A"]})");
  EXPECT_EQ(answer.status(), 404);
  EXPECT_NE(answer.error().find("\"fake\""), std::string::npos);
  EXPECT_EQ(answer.param(), "model");
}

TEST(Service, BodiesThatAreNoObjectAreRefused) {
  TestService test;
  for (const char* body : {"", "[]", "3", "{", "null", "{\"input\":\"\\ud800\"}"}) {
    EXPECT_EQ(test.Post("/v1/classify", body).status(), 400) << body;
  }
}

TEST(Service, TheSinksRefusalBecomesItsHttpStatus) {
  TestService test;
  const std::string body = R"({"input":"x","labels":["A"]})";
  for (const bool tells_early : {true, false}) {
    test.sink.RefuseWith(absl::ResourceExhaustedError("the queue is full"), tells_early);
    const Answer full = test.Post("/v1/classify", body);
    EXPECT_EQ(full.status(), 429);
    EXPECT_EQ(HeaderOf(full.response, "Retry-After"), "1");
    EXPECT_EQ(full.body.at("error").at("type").as_string(), "rate_limit_error");
    test.sink.RefuseWith(absl::UnavailableError("shutting down"), tells_early);
    EXPECT_EQ(test.Post("/v1/classify", body).status(), 503);
  }
  EXPECT_EQ(test.sink.submit_count(), 2);
  test.sink.RefuseWith(absl::InvalidArgumentError("too long"));
  EXPECT_EQ(test.Post("/v1/classify", body).status(), 400);
}

TEST(Service, WhereThereIsNoRoomTheBodyIsNotLookedAt) {
  TestService test;
  test.sink.RefuseWith(absl::ResourceExhaustedError("the queue is full"));
  for (const char* path :
       {"/v1/score", "/v1/classify", "/v1/completions", "/v1/loglikelihood", "/v1/embeddings"}) {
    EXPECT_EQ(test.Post(path, "no JSON").status(), 429) << path;
    EXPECT_EQ(test.Ask("POST", path, "no JSON", "60000").status(), 429) << path;
    EXPECT_EQ(test.Ask("POST", path, "no JSON", "soon").status(), 400) << path;
  }
  EXPECT_EQ(test.sink.submit_count(), 0);
  EXPECT_EQ(test.Post("/tokenize", R"({"prompt":"x"})").status(), 200);
  test.sink.RefuseWith(absl::OkStatus());
  EXPECT_EQ(test.Post("/v1/classify", "no JSON").status(), 400);
}

TEST(Service, APriorityIsRefusedUnlessItIsAllowed) {
  TestService test;
  const Answer answer = test.Post("/v1/classify", R"({"input":"x","labels":["A"],"priority":-1})");
  EXPECT_EQ(answer.status(), 400);
  EXPECT_EQ(answer.param(), "priority");
  EXPECT_EQ(test.Post("/v1/classify", R"({"input":"x","labels":["A"],"priority":0})").status(),
            200);
}

TEST(Service, APriorityTravelsWithTheWork) {
  TestService test({.allow_priority = true});
  const auto post = [&](const std::string& priority) {
    return test.Post("/v1/classify", R"({"input":"x","labels":["A"],"priority":)" + priority + "}");
  };
  EXPECT_EQ(post("-3").status(), 200);
  EXPECT_EQ(test.sink.priority(), -3);
  EXPECT_EQ(post("9223372036854775807").status(), 200);
  EXPECT_EQ(test.sink.priority(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(post("null").status(), 200);
  EXPECT_EQ(test.sink.priority(), 0);
  for (const char* bad : {"1.5", "\"high\"", "9223372036854775808"}) {
    EXPECT_EQ(post(bad).param(), "priority") << bad;
  }
}

TEST(Service, ATimeoutBecomesTheWorksDeadline) {
  TestService test;
  const std::string body = R"({"input":"x","labels":["A"]})";
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(test.Ask("POST", "/v1/classify", body, "60000").status(), 200);
  ASSERT_TRUE(test.sink.deadline().has_value());
  EXPECT_GE(*test.sink.deadline(), before + std::chrono::minutes(1));
  EXPECT_LE(*test.sink.deadline(), std::chrono::steady_clock::now() + std::chrono::minutes(1));
  EXPECT_EQ(test.Post("/v1/classify", body).status(), 200);
  EXPECT_FALSE(test.sink.deadline().has_value());
  for (const char* bad : {"0", "-5", "1.5", "soon", "86400001", "99999999999999999999"}) {
    const Answer refused = test.Ask("POST", "/v1/classify", body, bad);
    EXPECT_EQ(refused.status(), 400) << bad;
    EXPECT_EQ(refused.param(), "X-Request-Timeout-Ms") << bad;
  }
  test.sink.RefuseWith(absl::DeadlineExceededError("too late"));
  EXPECT_EQ(test.Ask("POST", "/v1/classify", body, "10").status(), 504);
}

TEST(Service, EveryEndpointTakesACacheSalt) {
  TestService test;
  const std::pair<const char*, const char*> requests[] = {
      {"/v1/classify", R"("input":"x","labels":["A"])"},
      {"/v1/score", R"("query":"q","items":["x"],"label_token_ids":[1])"},
      {"/v1/completions", R"("prompt":"x","max_tokens":1)"},
      {"/v1/loglikelihood", R"("context":"x","continuation":"y")"},
      {"/v1/embeddings", R"("input":"x")"}};
  for (const auto& [path, fields] : requests) {
    const auto post = [&](const std::string& salt) {
      return test.Post(path, "{" + salt + fields + "}");
    };
    EXPECT_EQ(post(R"("cache_salt":"mine",)").status(), 200) << path;
    EXPECT_EQ(test.sink.cache_salt(), "mine") << path;
    EXPECT_EQ(post("").status(), 200) << path;
    EXPECT_EQ(test.sink.cache_salt(), "") << path;
    for (const std::string& bad :
         {std::string("\"\""), std::string("7"), "\"" + std::string(1025, 'x') + "\""}) {
      const Answer refused = post("\"cache_salt\":" + bad + ",");
      EXPECT_EQ(refused.status(), 400) << path << " " << bad;
      EXPECT_EQ(refused.param(), "cache_salt");
    }
  }
}

TEST(Service, TheUsageSaysWhatTheCacheSaved) {
  TestService test;
  const Answer answer = test.Post("/v1/embeddings", R"({"input":"abcdefgh"})");
  const auto& details = answer.body.at("usage").at("prompt_tokens_details");
  EXPECT_EQ(details.at("cached_tokens").as_int64(), 3);
  EXPECT_EQ(details.at("computed_tokens").as_int64(),
            answer.body.at("usage").at("prompt_tokens").as_int64() - 3);
}

TEST(Service, DrainingIsHonest) {
  TestService test;
  test.service.StartDraining();
  EXPECT_EQ(test.Ask("GET", "/health", "").status(), 200);
  EXPECT_EQ(test.Ask("GET", "/ready", "").status(), 503);
  EXPECT_EQ(test.Post("/v1/classify", R"({"input":"x","labels":["A"]})").status(), 503);
}

TEST(Service, TheSameQuestionGivesTheSameBytes) {
  TestService test;
  const std::string body = R"({"query":"q","items":["x","y"],"label_token_ids":[1,2,3]})";
  EXPECT_EQ(test.Post("/v1/score", body).response.body, test.Post("/v1/score", body).response.body);
}

TEST(Service, TokenizesAndBack) {
  TestService test;
  const Answer tokens = test.Post(
      "/tokenize", R"({"prompt":"test","add_special_tokens":false,"return_token_strs":true})");
  ASSERT_EQ(tokens.status(), 200) << tokens.response.body;
  EXPECT_EQ(json::serialize(tokens.body.at("tokens")), "[116,101,115,116]");
  EXPECT_EQ(tokens.body.at("count").as_int64(), 4);
  EXPECT_EQ(tokens.body.at("token_strs").at(0).as_string(), "t");
  EXPECT_EQ(test.Post("/detokenize", R"({"tokens":[116,101]})").body.at("prompt").as_string(),
            "te");
  EXPECT_EQ(test.Post("/detokenize", R"({"tokens":[1000]})").param(), "tokens[0]");
  EXPECT_EQ(test.sink.submit_count(), 0);
}

TEST(Embeddings, AreNormalisedAndTheSameInBase64) {
  TestService test;
  const Answer floats = test.Post("/v1/embeddings", R"({"input":["a","b"],"dimensions":4})");
  ASSERT_EQ(floats.status(), 200) << floats.response.body;
  const auto& embedding = floats.body.at("data").at(1).at("embedding").as_array();
  ASSERT_EQ(embedding.size(), static_cast<size_t>(kFakeModelDim));
  double square = 0;
  for (const auto& number : embedding) {
    square += number.as_double() * number.as_double();
  }
  EXPECT_NEAR(square, 1.0, 1e-6);

  const Answer base64 =
      test.Post("/v1/embeddings", R"({"input":["a","b"],"encoding_format":"base64"})");
  std::string bytes;
  ASSERT_TRUE(absl::Base64Unescape(
      std::string(base64.body.at("data").at(1).at("embedding").as_string()), &bytes));
  ASSERT_EQ(bytes.size(), kFakeModelDim * sizeof(float));
  float first = 0;
  std::memcpy(&first, bytes.data(), sizeof(first));
  EXPECT_EQ(static_cast<double>(first), embedding[0].as_double());
}

TEST(Embeddings, NameTheBadField) {
  TestService test;
  EXPECT_EQ(test.Post("/v1/embeddings", R"({"input":"a","dimensions":3})").param(), "dimensions");
  EXPECT_EQ(test.Post("/v1/embeddings", R"({"input":"a","pooling":"max"})").param(), "pooling");
  EXPECT_EQ(test.Post("/v1/embeddings", R"({"input":""})").param(), "input");
}

TEST(Loglikelihood, SumsTheContinuationsTokens) {
  TestService test;
  const Answer answer =
      test.Post("/v1/loglikelihood", R"({"context":"Q: ","continuation":["no","yes"]})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const json::value& first = answer.body.at("data").at(0);
  // The space between belongs to the continuation.
  const double expected =
      FakeLogProb("Q:", ' ') + FakeLogProb("Q: ", 'n') + FakeLogProb("Q: n", 'o');
  EXPECT_NEAR(first.at("log_prob").as_double(), expected, 1e-12);
  EXPECT_EQ(first.at("token_log_probs").as_array().size(), 3u);
  EXPECT_FALSE(first.at("is_greedy").as_bool());
}

TEST(Loglikelihood, NamesTheBadField) {
  TestService test;
  EXPECT_EQ(test.Post("/v1/loglikelihood", R"({"context":"a","continuation":""})").param(),
            "continuation");
  EXPECT_EQ(test.Post("/v1/loglikelihood", R"({"context":"","continuation":"a"})").param(),
            "context");
  EXPECT_EQ(test.Post("/v1/loglikelihood", R"({"context":"a"})").param(), "continuation");
}

}  // namespace
}  // namespace zp::gateway
