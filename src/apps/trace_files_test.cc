#include "apps/trace_files.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::apps {
namespace {

using testing::HasSubstr;

class TraceFiles : public testing::Test {
 protected:
  ~TraceFiles() override { std::filesystem::remove(path_); }

  absl::StatusOr<planner::Trace> Read(const std::string& text) {
    std::ofstream(path_) << text;
    return ReadTrace("trace", path_, /*tokenizer=*/nullptr);
  }

  const std::string path_ = (std::filesystem::temp_directory_path() / FileName()).string();

 private:
  static std::string FileName() { return "zeroprefill_trace_" + std::to_string(getpid()); }
};

TEST_F(TraceFiles, ReadsArrivalsAndLengthsOfAzureTraces) {
  const auto trace = Read(
      "TIMESTAMP,ContextTokens,GeneratedTokens\n"
      "2023-11-16 23:59:59.5000000,4808,10\n"
      "2023-11-17 00:00:01.0000000,16,8\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_DOUBLE_EQ(trace->requests[0].arrival_s, 0);
  EXPECT_NEAR(trace->requests[1].arrival_s, 1.5, 1e-6);
  EXPECT_EQ(trace->requests[0].token_count(), 4808);
  EXPECT_EQ(planner::IdealHitRate(*trace), 0);
}

TEST_F(TraceFiles, EqualBlockNamesOfMooncakeTracesAreEqualTokens) {
  const auto trace =
      Read(R"({"timestamp": 10, "input_length": 1000, "output_length": 1, "hash_ids": [7, 8]})"
           "\n"
           R"({"timestamp": 20, "input_length": 600, "output_length": 1, "hash_ids": [7, 9]})"
           "\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->token_count(), 1600);
  EXPECT_DOUBLE_EQ(planner::IdealHitRate(*trace), 512.0 / 1600);
}

TEST_F(TraceFiles, NameTheLineThatIsWrong) {
  EXPECT_THAT(Read(R"({"timestamp": 1, "input_length": 1000, "hash_ids": [7]})").status().message(),
              HasSubstr("line 1: hash_ids does not fit input_length"));
  EXPECT_THAT(Read("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1\n").status().message(),
              HasSubstr("line 2: expected TIMESTAMP"));
  EXPECT_THAT(Read("[\"hash_ids\"]\n").status().message(), HasSubstr("line 1"));
  EXPECT_THAT(Read("{}\n").status().message(), HasSubstr("--tokenizer"));
  EXPECT_THAT(Read("").status().message(), HasSubstr("no request"));
}

}  // namespace
}  // namespace zp::apps
