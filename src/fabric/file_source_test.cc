#include "fabric/file_source.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "gtest/gtest.h"
#include "memory/buffer.h"

namespace zp::fabric {
namespace {

constexpr size_t kBlockBytes = 4096;
constexpr size_t kSliceBytes = 64 * kBlockBytes;

// Each of the ways to read files: (direct I/O, io_uring).
class FileSource : public testing::TestWithParam<std::tuple<bool, bool>> {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(testing::TempDir()) /
                 ("file_source_test." + std::to_string(getpid()));
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string WriteFile(const std::string& name, size_t size_bytes) {
    std::mt19937_64 random(contents_.size() + 1);
    std::string bytes(size_bytes, '\0');
    for (size_t i = 0; i + 8 <= size_bytes; i += 8) {
      const uint64_t word = random();
      std::memcpy(bytes.data() + i, &word, 8);
    }
    const std::string path = directory_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    contents_.push_back(bytes);
    return path;
  }

  std::unique_ptr<ByteSource> Open(const std::vector<std::string>& paths, int32_t depth = 8) {
    auto source = OpenFileSource(paths,
                                 {.depth = depth,
                                  .use_direct_io = std::get<0>(GetParam()),
                                  .use_io_uring = std::get<1>(GetParam())});
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }

  // Sleeps on event_fd() between polls; fails if nothing ends for ten seconds.
  static std::map<uint64_t, int> WaitFor(ByteSource& source, size_t count) {
    std::map<uint64_t, int> errors;
    std::vector<SliceDone> done;
    while (errors.size() < count) {
      if (source.Arm()) {
        pollfd wait = {.fd = source.event_fd(), .events = POLLIN, .revents = 0};
        if (poll(&wait, 1, 10'000) != 1) {
          ADD_FAILURE() << "nothing ended; " << errors.size() << " of " << count;
          return errors;
        }
      }
      done.clear();
      source.Poll(done);
      for (const SliceDone& one : done) {
        EXPECT_TRUE(errors.emplace(one.token, one.error).second) << one.token << " ended twice";
      }
    }
    return errors;
  }

  bool Holds(std::span<const std::byte> bytes, uint32_t object, uint64_t offset) const {
    return std::memcmp(bytes.data(), contents_[object].data() + offset, bytes.size()) == 0;
  }

  std::filesystem::path directory_;
  std::vector<std::string> contents_;  // by object
};

TEST_P(FileSource, ReadsWhatIsInTheFiles) {
  std::vector<std::string> paths;
  for (const size_t blocks : {1, 77, 300}) {
    paths.push_back(WriteFile(std::to_string(blocks), blocks * kBlockBytes));
  }
  const auto source = Open(paths);
  EXPECT_EQ(source->name(), "files 1 and 2 more");
  memory::Buffer buffer(8 * kSliceBytes, "test");
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<SliceRead> reads;
    for (uint64_t token = 0; token < 8; ++token) {
      const uint32_t object = random() % 3;
      const size_t file_blocks = contents_[object].size() / kBlockBytes;
      const size_t first = random() % file_blocks;
      const size_t blocks = 1 + random() % std::min<size_t>(64, file_blocks - first);
      reads.push_back(
          {.object = object,
           .offset = first * kBlockBytes,
           .destination = buffer.bytes().subspan(token * kSliceBytes, blocks * kBlockBytes),
           .token = token});
      std::memset(reads.back().destination.data(), 0xAB, blocks * kBlockBytes);
      source->Start(reads.back());
    }
    for (const auto& [token, error] : WaitFor(*source, 8)) {
      EXPECT_EQ(error, 0);
      EXPECT_TRUE(Holds(reads[token].destination, reads[token].object, reads[token].offset));
    }
  }
}

TEST_P(FileSource, ReadsOneLargeSlice) {
  const auto source = Open({WriteFile("large", 40 << 20)}, 1);
  memory::Buffer buffer(40 << 20, "test");
  source->Start({.destination = buffer.bytes(), .token = 5});
  EXPECT_EQ(WaitFor(*source, 1), (std::map<uint64_t, int>{{5, 0}}));
  EXPECT_TRUE(Holds(buffer.bytes(), 0, 0));
}

TEST_P(FileSource, SaysThatAFileIsTooShortAndThatAnObjectIsMissing) {
  const auto source = Open({WriteFile("short", 10 * kBlockBytes + 700)});
  memory::Buffer buffer(3 * kSliceBytes, "test");
  const auto bytes = buffer.bytes();
  source->Start({.object = 0, .offset = 0, .destination = bytes.first(11 * kBlockBytes)});
  source->Start({.object = 0,
                 .offset = 64 * kBlockBytes,
                 .destination = bytes.subspan(kSliceBytes, kBlockBytes),
                 .token = 1});
  source->Start(
      {.object = 9, .destination = bytes.subspan(2 * kSliceBytes, kBlockBytes), .token = 2});
  EXPECT_EQ(WaitFor(*source, 3),
            (std::map<uint64_t, int>{{0, ENODATA}, {1, ENODATA}, {2, ENOENT}}));
}

TEST_P(FileSource, CarriesOnAfterAbandon) {
  const auto source = Open({WriteFile("a", 64 * kSliceBytes)});
  memory::Buffer buffer(8 * kSliceBytes, "test");
  for (uint64_t round = 0; round < 50; ++round) {
    const auto start_all = [&](uint64_t first_token) {
      for (uint64_t i = 0; i < 8; ++i) {
        source->Start({.offset = (round + i) * kSliceBytes,
                       .destination = buffer.bytes().subspan(i * kSliceBytes, kSliceBytes),
                       .token = first_token + i});
      }
    };
    start_all(0);
    source->Abandon();
    for (const auto& [token, error] : WaitFor(*source, 8)) {
      EXPECT_EQ(error, ECANCELED) << token;
    }
    // What the abandoned reads left is overwritten, and stays so: nobody writes any more.
    std::memset(buffer.data(), 0xCD, buffer.size_bytes());
    start_all(100);
    for (const auto& [token, error] : WaitFor(*source, 8)) {
      ASSERT_EQ(error, 0) << token;
      const uint64_t i = token - 100;
      EXPECT_TRUE(Holds(
          buffer.bytes().subspan(i * kSliceBytes, kSliceBytes), 0, (round + i) * kSliceBytes));
    }
  }
}

TEST_P(FileSource, IsDestroyedWithReadsInFlight) {
  const std::string path = WriteFile("a", 8 * kSliceBytes);
  for (int round = 0; round < 20; ++round) {
    memory::Buffer buffer(8 * kSliceBytes, "test");
    const auto source = Open({path});
    for (uint64_t i = 0; i < 8; ++i) {
      source->Start({.offset = i * kSliceBytes,
                     .destination = buffer.bytes().subspan(i * kSliceBytes, kSliceBytes)});
    }
  }
}

TEST_P(FileSource, IsQuietWhileNothingIsInFlight) {
  const auto source = Open({WriteFile("a", kBlockBytes)});
  memory::Buffer buffer(kBlockBytes, "test");
  source->Start({.destination = buffer.bytes()});
  WaitFor(*source, 1);
  EXPECT_TRUE(source->Arm());
  pollfd wait = {.fd = source->event_fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&wait, 1, 0), 0);
}

INSTANTIATE_TEST_SUITE_P(AllWays,
                         FileSource,
                         testing::Combine(testing::Bool(), testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) ? "Direct" : "Cached") +
                                  (std::get<1>(info.param) ? "Uring" : "Threads");
                         });

TEST(OpenFileSource, NamesTheFileThatIsMissing) {
  const std::vector<std::string> paths = {"/nowhere/at/all.zpx"};
  const auto source = OpenFileSource(paths);
  EXPECT_EQ(source.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(source.status().ToString().find("/nowhere/at/all.zpx"), std::string::npos);
}

TEST(OpenFileSource, RefusesAnEmptyListAndADepthOfZero) {
  EXPECT_EQ(OpenFileSource({}).status().code(), absl::StatusCode::kInvalidArgument);
  const std::vector<std::string> paths = {"/dev/null"};
  EXPECT_EQ(OpenFileSource(paths, {.depth = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace zp::fabric
