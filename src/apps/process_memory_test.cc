#include "apps/process_memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include "gtest/gtest.h"

namespace zp::apps {
namespace {

// In pieces of any length, some empty.
std::vector<iovec> Cut(std::vector<std::byte>& bytes, std::mt19937& random) {
  std::vector<iovec> pieces;
  size_t begin = 0;
  while (begin < bytes.size()) {
    const size_t count = std::min<size_t>(bytes.size() - begin, random() % 900);
    pieces.push_back({bytes.data() + begin, count});
    begin += count;
  }
  return pieces;
}

TEST(ReadProcessTest, BringsTheBytesHoweverTheyAreCut) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<std::byte> from(3'000'000), to(3'000'000);
  std::ranges::generate(from, [&] { return static_cast<std::byte>(random()); });
  const std::vector<iovec> source = Cut(from, random);
  const std::vector<iovec> target = Cut(to, random);
  ASSERT_GT(source.size(), 2048U);  // more than a call takes
  const absl::Status status = ReadProcess(getpid(), source, target);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(from == to);
}

TEST(ReadProcessTest, RefusesUnequalLengths) {
  std::vector<std::byte> bytes(100);
  const iovec all = {bytes.data(), 100};
  const iovec less = {bytes.data(), 99};
  EXPECT_EQ(ReadProcess(getpid(), std::span(&all, 1), std::span(&less, 1)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadProcess(getpid(), std::span(&less, 1), std::span(&all, 1)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ReadProcessTest, SaysThatAProcessIsGone) {
  const pid_t child = fork();
  if (child == 0) {
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  std::byte byte{};
  const iovec one = {&byte, 1};
  EXPECT_EQ(ReadProcess(child, std::span(&one, 1), std::span(&one, 1)).code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace zp::apps
