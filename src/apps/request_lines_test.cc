#include "apps/request_lines.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace zp::apps {
namespace {

constexpr char kTwoLines[] =
    R"({"request": {"context": "Is it so?", "continuation": " yes"}, "label": 1}
{"context": "Is it so?", "continuation": " no"}
)";

std::string WriteTemporary(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

std::vector<std::string> ContinuationsOf(const std::string& path) {
  std::vector<std::string> continuations;
  const absl::Status status = ForEachRequestLine(path, [&](const RequestLine& request) {
    EXPECT_EQ(request.context, "Is it so?");
    continuations.push_back(request.continuation);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return continuations;
}

TEST(RequestLinesTest, ReadsWrappedAndBareRequests) {
  const std::string path = WriteTemporary("requests.jsonl", kTwoLines);
  EXPECT_EQ(ContinuationsOf(path), (std::vector<std::string>{" yes", " no"}));
}

TEST(RequestLinesTest, ReadsPackedFiles) {
  if (std::system("xz --version > /dev/null 2>&1") != 0) {
    GTEST_SKIP() << "the program xz is not there";
  }
  const std::string path = WriteTemporary("packed.jsonl", kTwoLines);
  ASSERT_EQ(std::system(("xz --force " + path).c_str()), 0);
  EXPECT_EQ(ContinuationsOf(path + ".xz"), (std::vector<std::string>{" yes", " no"}));
}

TEST(RequestLinesTest, NamesFileAndLineOfWhatIsNoRequest) {
  const std::string path =
      WriteTemporary("broken.jsonl", std::string(kTwoLines) + "{\"context\": 3}\n");
  const absl::Status status =
      ForEachRequestLine(path, [](const RequestLine&) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find(path + ", line 3"), std::string::npos) << status;
}

TEST(RequestLinesTest, NamesAFileThatIsNotThere) {
  for (const std::string path : {"/nowhere/at/all.jsonl", "/nowhere/at/all.jsonl.xz"}) {
    const absl::Status status =
        ForEachRequestLine(path, [](const RequestLine&) { return absl::OkStatus(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_NE(status.message().find(path), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace zp::apps
