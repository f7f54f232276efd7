#include "apps/score_file.h"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "apps/score_line.h"
#include "gtest/gtest.h"

namespace zp::apps {
namespace {

std::string PathOf(const std::string& line) {
  const absl::StatusOr<ScoreLine> result = ReadScoreLine(line, 1);
  return result.ok() ? result->request.path : base::MessageOf(result.status());
}

TEST(ScoreLine, TheQuestionTellsItsEndpoint) {
  EXPECT_EQ(PathOf(R"({"query":"q","items":["x"],"label_token_ids":[1]})"), "/v1/score");
  EXPECT_EQ(PathOf(R"({"prompt":"p","labels":["a"]})"), "/v1/classify");
  EXPECT_EQ(PathOf(R"({"input":"p","task":"spam"})"), "/v1/classify");
  EXPECT_EQ(PathOf(R"({"prompt":"p","max_tokens":1})"), "/v1/completions");
  EXPECT_EQ(PathOf(R"({"input":"p"})"), "/v1/embeddings");
  EXPECT_EQ(PathOf(R"({"request":{"context":"c","continuation":"d"},"idx":0})"),
            "/v1/loglikelihood");
  EXPECT_EQ(PathOf(R"({"custom_id":"a","method":"POST","url":"/v1/score","body":{}})"),
            "/v1/score");
  EXPECT_NE(PathOf("{}").find("none of query"), std::string::npos);
  EXPECT_NE(PathOf("[").find("not JSON"), std::string::npos);
}

class ScoreFileTest : public testing::Test {
 protected:
  ScoreFileTest() {
    const std::string stem =
        testing::TempDir() + testing::UnitTest::GetInstance()->current_test_info()->name();
    options_.input_path = stem + ".in.jsonl";
    options_.output_path = stem + ".out.jsonl";
    std::filesystem::remove(options_.input_path);
    std::filesystem::remove(options_.output_path);
  }

  void WriteInput(const std::string& text) { std::ofstream(options_.input_path) << text; }

  std::string ReadOutput() const {
    std::stringstream text;
    text << std::ifstream(options_.output_path).rdbuf();
    return text.str();
  }

  // Echoes the body; counts what it was asked.
  absl::StatusOr<ScoreFileCounts> Run() {
    const gateway::Handler handler = [this](gateway::Request request,
                                            std::stop_token,
                                            std::function<void(gateway::Response)> done) {
      asked_.push_back(request.request_id);
      done({.body = request.body, .usage = protocol::Usage{.prompt_tokens = 2}});
    };
    return ScoreFile(options_, handler, [](const ScoreFileCounts&) {});
  }

  ScoreFileOptions options_;
  std::vector<std::string> asked_;
};

TEST_F(ScoreFileTest, AnswersInOrderAndABadLineHurtsOnlyItself) {
  WriteInput("{\"input\":\"x\"}\n\nbroken\n{\"custom_id\":\"c\",\"url\":\"/u\",\"body\":{}}");
  const absl::StatusOr<ScoreFileCounts> counts = Run();
  ASSERT_TRUE(counts.ok()) << base::MessageOf(counts.status());
  EXPECT_EQ(counts->rows, 3);
  EXPECT_EQ(counts->errors, 1);
  EXPECT_EQ(counts->asked_tokens, 4);
  EXPECT_EQ(counts->done_share, 1.0);
  const std::string output = ReadOutput();
  EXPECT_EQ(output.find(R"({"id":"line-1","custom_id":"line-1","response":{"status_code":200)"),
            0u);
  EXPECT_LT(output.find("\"line-3\""), output.find("\"custom_id\":\"c\""));
}

TEST_F(ScoreFileTest, ResumeAddsOnlyWhatIsMissing) {
  WriteInput("{\"input\":\"x\"}\n{\"input\":\"y\"}\n{\"input\":\"z\"}\n");
  options_.window_lines = 1;
  ASSERT_TRUE(Run().ok());
  const std::string whole = ReadOutput();
  const size_t first_line = whole.find('\n') + 1;
  std::ofstream(options_.output_path) << whole.substr(0, first_line + 20);  // killed while writing
  asked_.clear();
  options_.resume = true;
  const absl::StatusOr<ScoreFileCounts> counts = Run();
  ASSERT_TRUE(counts.ok()) << base::MessageOf(counts.status());
  EXPECT_EQ(counts->skipped, 1);
  EXPECT_EQ(asked_, (std::vector<std::string>{"line-2", "line-3"}));
  EXPECT_EQ(ReadOutput(), whole);
}

TEST_F(ScoreFileTest, NothingIsOverwrittenUnasked) {
  WriteInput("{\"input\":\"x\"}\n");
  std::ofstream(options_.output_path) << "precious\n";
  EXPECT_EQ(CheckScoreFiles(options_).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(Run().ok());
  options_.resume = true;
  EXPECT_TRUE(CheckScoreFiles(options_).ok());
  EXPECT_FALSE(Run().ok());  // not an answer of an earlier run
  EXPECT_EQ(ReadOutput(), "precious\n");
  options_ = {
      .input_path = options_.input_path, .output_path = options_.output_path, .overwrite = true};
  EXPECT_TRUE(Run().ok());
}

TEST_F(ScoreFileTest, PathsThatCannotBeUsedAreNamed) {
  EXPECT_EQ(CheckScoreFiles(options_).code(), absl::StatusCode::kNotFound);
  const absl::StatusOr<ScoreFileCounts> no_input = Run();
  ASSERT_FALSE(no_input.ok());
  EXPECT_NE(base::MessageOf(no_input.status()).find(options_.input_path), std::string::npos);
  WriteInput("{}\n");
  options_.output_path = "/no/such/folder/out.jsonl";
  const absl::StatusOr<ScoreFileCounts> no_output = Run();
  ASSERT_FALSE(no_output.ok());
  EXPECT_NE(base::MessageOf(no_output.status()).find("/no/such/folder"), std::string::npos);
}

}  // namespace
}  // namespace zp::apps
