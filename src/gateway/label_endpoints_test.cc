// /v1/score and /v1/classify.
#include <cmath>

#include "gateway/fake_model.h"

namespace zp::gateway {
namespace {

TEST(Score, GivesVocabularyProbabilitiesPerItemAndLabel) {
  TestService test;
  const Answer answer = test.Post(
      "/v1/score",
      R"({"model":"fake","query":"Is it? ","items":["Paris","London"],"label_token_ids":[65,66]})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  EXPECT_EQ(answer.body.at("object").as_string(), "scoring");
  const auto& scores = answer.body.at("scores").as_array();
  ASSERT_EQ(scores.size(), 2u);
  EXPECT_EQ(scores[0].at(0).as_double(), std::exp(FakeLogProb("Is it? Paris", 'A')));
  EXPECT_EQ(scores[1].at(1).as_double(), std::exp(FakeLogProb("Is it? London", 'B')));
  EXPECT_EQ(answer.body.at("usage").at("prompt_tokens").as_int64(), 12 + 13);
  EXPECT_EQ(answer.body.at("usage").at("completion_tokens").as_int64(), 0);
}

TEST(Score, SoftmaxIsOverTheLabelsOnly) {
  TestService test;
  const Answer answer = test.Post(
      "/v1/score",
      R"({"query":"q","items":"x","labels":["A","B"],"apply_softmax":true,"item_first":true})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const auto& row = answer.body.at("scores").at(0).as_array();
  EXPECT_NEAR(row[0].as_double() + row[1].as_double(), 1.0, 1e-12);
  const double odds = FakeLogProb("xq", 'A') - FakeLogProb("xq", 'B');
  EXPECT_NEAR(std::log(row[0].as_double() / row[1].as_double()), odds, 1e-6);
}

TEST(Score, TakesTokenIdsForBoth) {
  TestService test;
  const Answer ids =
      test.Post("/v1/score", R"({"query":[113],"items":[[120]],"label_token_ids":[65]})");
  const Answer text = test.Post("/v1/score", R"({"query":"q","items":["x"],"labels":["A"]})");
  ASSERT_EQ(ids.status(), 200) << ids.response.body;
  EXPECT_EQ(ids.body.at("scores"), text.body.at("scores"));
  const Answer mixed = test.Post("/v1/score", R"({"query":"q","items":[[120]],"labels":["A"]})");
  EXPECT_EQ(mixed.status(), 400);
  EXPECT_EQ(mixed.param(), "items[0]");
}

TEST(Score, OtherServersShapesAreRefusedLoudly) {
  TestService test;
  const Answer answer = test.Post("/v1/score", R"({"queries":"q","documents":["d"]})");
  EXPECT_EQ(answer.status(), 400);
  EXPECT_NE(answer.error().find("query, items"), std::string::npos) << answer.error();
}

TEST(Score, NamesTheBadField) {
  TestService test;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"query":"q","items":["x"]})", "label_token_ids"},
      {R"({"query":"q","items":["x"],"label_token_ids":[999]})", "label_token_ids[0]"},
      {R"({"query":"q","items":["x"],"label_token_ids":[]})", "label_token_ids"},
      {R"({"query":"q","items":[],"label_token_ids":[1]})", "items"},
      {R"({"query":"q","items":["x",3],"label_token_ids":[1]})", "items[1]"},
      {R"({"items":["x"],"label_token_ids":[1]})", "query"},
      {R"({"query":"q","items":["x"],"labels":["A",""]})", "labels[1]"},
      {R"({"query":"q","items":["x"],"labels":["A"],"apply_softmax":1})", "apply_softmax"},
      {R"({"query":"q","items":["x"],"label_token_ids":[65,66,65]})", "label_token_ids[2]"},
      {R"({"query":"q","items":["x"],"labels":["A","A"]})", "labels[1]"},
  };
  for (const auto& [body, field] : cases) {
    const Answer answer = test.Post("/v1/score", body);
    EXPECT_EQ(answer.status(), 400) << body;
    EXPECT_EQ(answer.param(), field) << answer.error();
  }
}

TEST(Classify, AnswersInTheEnvelopeWithOurExtras) {
  TestService test;
  const Answer answer = test.Post(
      "/v1/classify",
      R"({"input":["one","two"],"labels":["A","B","C"],"template":"Text: {text}\nLabel:"})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  EXPECT_EQ(answer.body.at("object").as_string(), "list");
  EXPECT_EQ(answer.body.at("labels").as_array().size(), 3u);
  const auto& data = answer.body.at("data").as_array();
  ASSERT_EQ(data.size(), 2u);
  double sum = 0;
  for (const auto& prob : data[1].at("probs").as_array()) {
    sum += prob.as_double();
  }
  EXPECT_NEAR(sum, 1.0, 1e-12);
  EXPECT_EQ(data[1].at("num_classes").as_int64(), 3);
  const std::string prompt = "Text: two\nLabel:";
  const double odds = FakeLogProb(prompt, 'A') - FakeLogProb(prompt, 'C');
  const auto& log_probs = data[1].at("log_probs").as_array();
  EXPECT_NEAR(log_probs[0].as_double() - log_probs[2].as_double(), odds, 1e-6);
}

TEST(Classify, LabelsMayHaveSeveralTokens) {
  TestService test;
  const Answer answer = test.Post(
      "/classify", R"({"inputs":"x","labels":["no","yes"],"normalization":"vocabulary"})");
  ASSERT_EQ(answer.status(), 200) << answer.response.body;
  const auto& log_probs = answer.body.at("data").at(0).at("log_probs").as_array();
  EXPECT_NEAR(log_probs[0].as_double(), FakeLogProb("x", 'n') + FakeLogProb("xn", 'o'), 1e-12);
  EXPECT_EQ(answer.body.at("usage").at("prompt_tokens").as_int64(), 1);
}

TEST(Classify, TaskBringsTemplateAndLabels) {
  TestService test;
  test.model.AddTask("spam", {.prompt_template = "Mail: {text}\nSpam:", .labels = {"N", "Y"}});
  const Answer by_task = test.Post("/v1/classify", R"({"input":"hi","task":"spam"})");
  const Answer by_hand = test.Post(
      "/v1/classify", R"({"input":"hi","labels":["N","Y"],"template":"Mail: {text}\nSpam:"})");
  ASSERT_EQ(by_task.status(), 200) << by_task.response.body;
  EXPECT_EQ(by_task.body.at("data"), by_hand.body.at("data"));
  const Answer unknown = test.Post("/v1/classify", R"({"input":"hi","task":"ham"})");
  EXPECT_EQ(unknown.status(), 400);
  EXPECT_NE(unknown.error().find("\"spam\""), std::string::npos) << unknown.error();
  const Answer neither = test.Post("/v1/classify", R"({"input":"hi"})");
  EXPECT_EQ(neither.error(), "labels is required without a task: this model has \"spam\"");
}

TEST(Classify, NamesTheBadField) {
  TestService test;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"labels":["A"]})", "input"},
      {R"({"input":"x"})", "labels"},
      {R"({"input":"","labels":["A"]})", "input"},
      {R"({"input":["x",""],"labels":["A"]})", "input[1]"},
      {R"({"input":"x","labels":["A",""]})", "labels[1]"},
      {R"({"input":"x","labels":["A","B","A"]})", "labels[2]"},
      {R"({"input":"x","labels":["A"],"template":"no place"})", "template"},
      {R"({"input":"x","labels":["A"],"template":"{text}{text}"})", "template"},
      {R"({"input":"x","labels":["A"],"normalization":"both"})", "normalization"},
      {R"({"input":[["nested"]],"labels":["A"]})", "input[0]"},
  };
  for (const auto& [body, field] : cases) {
    const Answer answer = test.Post("/v1/classify", body);
    EXPECT_EQ(answer.status(), 400) << body;
    EXPECT_EQ(answer.param(), field) << answer.error();
  }
}

TEST(Classify, PromptBeyondTheModelsMaximumIsRefused) {
  TestService test;
  const Answer answer = test.Post(
      "/v1/classify", fmt::format(R"({{"input":"{}","labels":["A"]}})", std::string(101, 'x')));
  EXPECT_EQ(answer.status(), 400);
  EXPECT_NE(answer.error().find("101 tokens; the model's maximum is 100"), std::string::npos)
      << answer.error();
}

TEST(Classify, TenMegabytesOfTextAreRefusedQuickly) {
  TestService test;
  const auto start = std::chrono::steady_clock::now();
  const Answer answer =
      test.Post("/v1/classify",
                fmt::format(R"({{"input":"{}","labels":["A"]}})", std::string(10 << 20, 'x')));
  EXPECT_EQ(answer.status(), 400);
  EXPECT_NE(answer.error().find("maximum of 100 tokens"), std::string::npos) << answer.error();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

TEST(Classify, ManyPromptsTimesManyLabelsAreBounded) {
  TestService test;
  std::string inputs;
  for (int i = 0; i < 16'000; ++i) {
    inputs += i == 0 ? "\"x\"" : ",\"x\"";
  }
  std::string labels;
  for (int i = 0; i < 4'000; ++i) {
    labels += fmt::format("{}\"{}\"", i == 0 ? "" : ",", i);
  }
  const Answer answer =
      test.Post("/v1/classify", fmt::format(R"({{"input":[{}],"labels":[{}]}})", inputs, labels));
  EXPECT_EQ(answer.status(), 400);
  EXPECT_NE(answer.error().find("limit of one request"), std::string::npos) << answer.error();
  EXPECT_EQ(test.sink.submit_count(), 0);
}

// Each label of several tokens is a sequence with the prompt and its own tokens.
TEST(Classify, ManyPromptsTimesLongLabelsAreBounded) {
  TestService test;
  std::string inputs;
  for (int i = 0; i < 2'000; ++i) {
    inputs += i == 0 ? "\"x\"" : ",\"x\"";
  }
  std::string labels;
  for (char c = '!'; c < '!' + 40; ++c) {
    labels += c == '"' ? "" : fmt::format("{}\"{}\"", c == '!' ? "" : ",", std::string(60, c));
  }
  const Answer answer =
      test.Post("/v1/classify", fmt::format(R"({{"input":[{}],"labels":[{}]}})", inputs, labels));
  EXPECT_EQ(answer.status(), 400);
  EXPECT_NE(answer.error().find("4194304 tokens"), std::string::npos) << answer.error();
  EXPECT_EQ(test.sink.submit_count(), 0);
}

TEST(Classify, AnInputThatLeavesNoRoomForTheLongestLabelIsNamed) {
  TestService test;
  const Answer answer = test.Post("/v1/classify",
                                  fmt::format(R"({{"input":["x","{}"],"labels":["A","{}"]}})",
                                              std::string(60, 'x'),
                                              std::string(60, 'y')));
  EXPECT_EQ(answer.status(), 400);
  EXPECT_EQ(answer.param(), "input[1]");
  EXPECT_NE(answer.error().find("100 tokens"), std::string::npos) << answer.error();
}

}  // namespace
}  // namespace zp::gateway
