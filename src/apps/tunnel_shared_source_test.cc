#include "apps/tunnel_shared_source.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <vector>

#include "apps/process_memory.h"
#include "apps/shared_memory.h"
#include "fabric/abandon.h"
#include "gtest/gtest.h"
#include "memory/buffer.h"

namespace zp::apps {
namespace {

using Clock = SharedLinks::Clock;

constexpr size_t kSliceBytes = 256 << 10;
constexpr size_t kSlices = 24;

std::byte ByteAt(size_t place) { return static_cast<std::byte>(place * 2654435761U >> 13); }

// A process that holds out bytes until it is ended.
class Holder {
 public:
  Holder() : bytes_(kSlices * kSliceBytes, "test") {
    for (size_t place = 0; place < bytes_.size_bytes(); ++place) {
      bytes_.data()[place] = ByteAt(place);
    }
    pid_ = fork();
    if (pid_ == 0) {
      AllowReaders();
      while (true) {
        pause();
      }
    }
    std::memset(bytes_.data(), 0, bytes_.size_bytes());  // ours, not the holder's
  }
  ~Holder() { End(); }
  void End() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }
  HeldOutMemory memory() const {
    HeldOutMemory memory = HeldOutMemory::Of(bytes_.bytes());
    memory.pid = pid_;
    return memory;
  }

 private:
  memory::Buffer bytes_;
  pid_t pid_ = -1;
};

class SharedSourceTest : public testing::Test {
 protected:
  void SetUp() override {
    source_ = MakeSharedSource(holder_.memory(), links_, /*holding_rank=*/1, /*reading_rank=*/0);
  }

  void Start(size_t slice, fabric::ByteSource& source) {
    source.Start({.object = 0,
                  .offset = slice * kSliceBytes,
                  .destination = target_.bytes().subspan(slice * kSliceBytes, kSliceBytes),
                  .token = slice});
  }
  // The next completions, as whoever sleeps would come by them.
  static std::vector<fabric::SliceDone> Await(fabric::ByteSource& source) {
    std::vector<fabric::SliceDone> done;
    while (done.empty()) {
      pollfd wait = {.fd = source.event_fd(), .events = POLLIN, .revents = 0};
      if (source.Arm() && poll(&wait, 1, 10'000) != 1) {
        ADD_FAILURE() << "no alarm came";
        return done;
      }
      source.Poll(done);
    }
    return done;
  }

  Holder holder_;
  std::unique_ptr<SharedMemory> memory_ = *SharedMemory::Create(SharedLinks::BytesFor(2));
  SharedLinks links_{memory_->bytes(), 2};
  memory::Buffer target_{kSlices * kSliceBytes, "test"};
  std::unique_ptr<fabric::ByteSource> source_;
};

TEST_F(SharedSourceTest, BringsTheBytesOfAnotherProcessNoFasterThanTheLink) {
  constexpr double kRate = 50e6;
  links_.SetRate(kRate);
  const Clock::time_point begin = Clock::now();
  size_t next = 0, ended = 0;
  for (; next < static_cast<size_t>(source_->max_reads_in_flight()); ++next) {
    Start(next, *source_);
  }
  while (ended < kSlices) {
    const auto done = Await(*source_);
    ASSERT_FALSE(done.empty());
    for (const fabric::SliceDone& one : done) {
      ASSERT_EQ(one.error, 0);
      ++ended;
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      EXPECT_GE(seconds, static_cast<double>(ended * kSliceBytes) / kRate - 0.002);
      if (next < kSlices) {
        Start(next++, *source_);
      }
    }
  }
  for (size_t place = 0; place < target_.size_bytes(); ++place) {
    ASSERT_EQ(target_.data()[place], ByteAt(place)) << place;
  }
}

TEST_F(SharedSourceTest, ArmsOnlyWhileNothingHasCome) {
  links_.SetRate(1e6);
  EXPECT_TRUE(source_->Arm());
  Start(0, *source_);
  std::vector<fabric::SliceDone> done;
  source_->Poll(done);
  EXPECT_TRUE(done.empty());
  EXPECT_TRUE(source_->Arm());
  source_->Abandon();
  EXPECT_FALSE(source_->Arm());
}

TEST_F(SharedSourceTest, AbandonedReadsEndAtOnceAndTheNextOnesGoOn) {
  links_.SetRate(1e3);  // four minutes a slice
  Start(0, *source_);
  Start(1, *source_);
  fabric::AbandonAndWait(*source_, 2);
  EXPECT_EQ(target_.data()[1], std::byte{0});
  links_.SetRate(1e12);
  Start(2, *source_);
  const auto done = Await(*source_);
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].token, 2U);
  EXPECT_EQ(done[0].error, 0);
}

TEST_F(SharedSourceTest, SaysThatThePeerIsGoneOrHasNoSuchBytes) {
  HeldOutMemory less = holder_.memory();
  less.bytes = kSliceBytes / 2;
  const auto short_source = MakeSharedSource(less, links_, 1, 0);
  Start(0, *short_source);
  EXPECT_EQ(Await(*short_source)[0].error, ERANGE);
  holder_.End();
  Start(0, *source_);
  EXPECT_EQ(Await(*source_)[0].error, ECONNRESET);
}

TEST(HeldOutMemoryTest, ComesBackFromItsTextAndRefusesOthers) {
  const HeldOutMemory memory = {.pid = 7, .address = uint64_t{1} << 63, .bytes = 99};
  const HeldOutMemory back = *HeldOutMemory::FromText(memory.ToText());
  EXPECT_EQ(back.pid, memory.pid);
  EXPECT_EQ(back.address, memory.address);
  EXPECT_EQ(back.bytes, memory.bytes);
  for (const char* wrong : {"", "1:2", "1:2:x", "1:2:3:4"}) {
    EXPECT_FALSE(HeldOutMemory::FromText(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace zp::apps
