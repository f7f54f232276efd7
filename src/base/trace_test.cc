#include "base/trace.h"

#include <cstdio>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::base {
namespace {

using testing::HasSubstr;

std::string Written(const Trace& trace) {
  const std::string path = testing::TempDir() + "/zp_trace_test.json";
  EXPECT_TRUE(trace.Write(path).ok());
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::remove(path.c_str());
  return text.str();
}

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

TEST(Trace, WritesABarPerEventAndNamesRanksAndTracksOnce) {
  Trace trace(100);
  const auto now = std::chrono::steady_clock::now();
  for (int32_t layer = 0; layer < 3; ++layer) {
    trace.Add({.track = "gather",
               .name = "gather",
               .rank = 1,
               .layer = layer,
               .bytes = 42,
               .begin = now,
               .end = now + std::chrono::microseconds(1500)});
  }
  const std::string text = Written(trace);
  EXPECT_EQ(Count(text, R"("ph":"X")"), 3u);
  EXPECT_EQ(Count(text, R"("thread_name")"), 1u);
  EXPECT_THAT(text, HasSubstr(R"("name":"rank 1")"));
  EXPECT_THAT(text, HasSubstr(R"("dur":1500.000,"args":{"layer":2,"bytes":42}})"));
}

TEST(Trace, KeepsTheFirstEventsWhenFull) {
  Trace trace(2);
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&] { trace.Add({.track = "compute", .name = "ffn"}); });
    }
  }
  EXPECT_EQ(Count(Written(trace), R"("ph":"X")"), 2u);
}

TEST(Trace, AnEmptyOneIsStillAFile) { EXPECT_EQ(Written(Trace(1)), "{\"traceEvents\":[]}\n"); }

TEST(Trace, SaysWhereItCannotWrite) {
  EXPECT_THAT(std::string(Trace(1).Write("/nowhere/trace.json").message()),
              HasSubstr("/nowhere/trace.json"));
}

}  // namespace
}  // namespace zp::base
