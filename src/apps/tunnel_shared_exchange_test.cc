#include "apps/tunnel_shared_exchange.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "apps/shared_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::apps {
namespace {

using fabric::Exchange;
using fabric::ReceiveParts;
using fabric::SendParts;
using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr milliseconds kPatience{60'000};

// The memory of the ranks of a test, which are threads or processes.
class Ranks {
 public:
  explicit Ranks(int32_t count, double bytes_per_s = 1e12)
      : count_(count),
        links_memory_(*SharedMemory::Create(SharedLinks::BytesFor(count))),
        memory_(*SharedMemory::Create(SharedExchangeBytes(count))),
        links_(links_memory_->bytes(), count) {
    links_.SetRate(bytes_per_s);
  }

  absl::StatusOr<std::unique_ptr<Exchange>> Join(int32_t rank, milliseconds time_out = kPatience) {
    return JoinSharedExchange(memory_->bytes(), links_, rank, count_, time_out);
  }

  void OnThreads(const std::function<void(Exchange&)>& task, milliseconds time_out = kPatience) {
    std::vector<std::jthread> threads;
    for (int32_t rank = 0; rank < count_; ++rank) {
      threads.emplace_back([&, rank] {
        auto exchange = Join(rank, time_out);
        ASSERT_TRUE(exchange.ok()) << exchange.status();
        task(**exchange);
      });
    }
  }

  // `task` tells whether all was well. It must not use the test's own expectations.
  std::vector<pid_t> OnProcesses(const std::function<bool(Exchange&)>& task) {
    std::vector<pid_t> processes;
    for (int32_t rank = 0; rank < count_; ++rank) {
      processes.push_back(fork());
      if (processes.back() == 0) {
        auto exchange = Join(rank);
        _exit(exchange.ok() && task(**exchange) ? 0 : 1);
      }
    }
    return processes;
  }

  int32_t count() const { return count_; }

 private:
  const int32_t count_;
  const std::unique_ptr<SharedMemory> links_memory_;
  const std::unique_ptr<SharedMemory> memory_;
  SharedLinks links_;
};

int StatusOf(pid_t process) {
  int status = 0;
  waitpid(process, &status, 0);
  return status;
}

// Of any length up to 1 MB, often none.
std::vector<std::byte> Message(int step, int32_t source, int32_t target) {
  std::mt19937 random(static_cast<uint32_t>(step * 10'000 + source * 100 + target));
  std::vector<std::byte> bytes(random() % 3 == 0 ? 0 : random() % 1'000'000);
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(random());
  }
  return bytes;
}

template <typename Parts>
Parts Cut(auto& bytes, uint32_t seed) {
  std::mt19937 random(seed);
  Parts parts;
  for (size_t begin = 0; begin < bytes.size();) {
    const size_t count = std::min<size_t>(bytes.size() - begin, random() % 2000);
    parts.emplace_back(bytes.data() + begin, count);
    begin += count;
  }
  return parts;
}

bool SwapsRightly(Exchange& exchange) {
  const int32_t rank = exchange.rank();
  const int32_t count = exchange.rank_count();
  for (int step = 0; step < 8; ++step) {
    std::vector<std::vector<std::byte>> out(count), in(count), expected(count);
    std::vector<SendParts> outgoing(count);
    std::vector<ReceiveParts> incoming(count);
    for (int32_t peer = 0; peer < count; ++peer) {
      if (peer != rank) {
        out[peer] = Message(step, rank, peer);
        expected[peer] = Message(step, peer, rank);
        in[peer].resize(expected[peer].size());
        outgoing[peer] = Cut<SendParts>(out[peer], static_cast<uint32_t>(rank));
        incoming[peer] = Cut<ReceiveParts>(in[peer], static_cast<uint32_t>(rank + 100));
      }
    }
    if (!exchange.Swap(outgoing, incoming).ok() || in != expected) {
      return false;
    }
  }
  return true;
}

absl::Status SwapBytes(Exchange& exchange, size_t send_bytes, size_t receive_bytes) {
  const auto count = static_cast<size_t>(exchange.rank_count());
  const std::vector<std::byte> out(send_bytes);
  std::vector<std::vector<std::byte>> in(count, std::vector<std::byte>(receive_bytes));
  const std::vector<SendParts> outgoing(count, SendParts{std::span(out)});
  std::vector<ReceiveParts> incoming;
  for (auto& bytes : in) {
    incoming.push_back({std::span(bytes)});
  }
  return exchange.Swap(outgoing, incoming);
}

TEST(SharedExchangeTest, EveryThreadGetsWhatEachOtherSent) {
  for (const int32_t count : {1, 2, 5}) {
    Ranks(count).OnThreads([](Exchange& exchange) { EXPECT_TRUE(SwapsRightly(exchange)); });
  }
}

TEST(SharedExchangeTest, EveryProcessGetsWhatEachOtherSent) {
  Ranks ranks(4);
  for (const pid_t process : ranks.OnProcesses(SwapsRightly)) {
    EXPECT_EQ(StatusOf(process), 0);
  }
}

TEST(SharedExchangeTest, MessagesComeNoSoonerThanTheLinksBringThem) {
  Ranks(3, /*bytes_per_s=*/10e6).OnThreads([](Exchange& exchange) {
    const auto begin = SharedLinks::Clock::now();
    EXPECT_TRUE(SwapBytes(exchange, 500'000, 500'000).ok());
    const std::chrono::duration<double> seconds = SharedLinks::Clock::now() - begin;
    // Two of them over each link; the first may have left before this rank began.
    EXPECT_GE(seconds.count(), 0.05);
  });
}

TEST(SharedExchangeTest, ARankThatLeavesEndsItForAll) {
  Ranks(3).OnThreads([](Exchange& exchange) {
    if (exchange.rank() == 2) {
      return;
    }
    const absl::Status first = SwapBytes(exchange, 1, 1);
    EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable) << first;
    EXPECT_EQ(SwapBytes(exchange, 1, 1), first);
  });
}

TEST(SharedExchangeTest, AProcessThatIsKilledEndsItForAll) {
  Ranks ranks(3);
  const auto processes = ranks.OnProcesses([](Exchange& exchange) {
    if (exchange.rank() == 2) {
      kill(getpid(), SIGKILL);
    }
    return SwapBytes(exchange, 1, 1).code() == absl::StatusCode::kUnavailable;
  });
  EXPECT_EQ(StatusOf(processes[0]), 0);
  EXPECT_EQ(StatusOf(processes[1]), 0);
  EXPECT_TRUE(WIFSIGNALED(StatusOf(processes[2])));
}

TEST(SharedExchangeTest, ASilentRankEndsItAfterTheTimeOut) {
  Ranks ranks(2);
  std::unique_ptr<Exchange> silent;
  std::unique_ptr<Exchange> waiting;
  {
    const std::jthread other([&] { silent = *ranks.Join(1); });
    waiting = *ranks.Join(0, milliseconds(300));
  }
  const absl::Status status = SwapBytes(*waiting, 1, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(base::MessageOf(status), HasSubstr("rank 1"));
}

TEST(SharedExchangeTest, AMessageOfAnotherLengthIsRefused) {
  Ranks(2).OnThreads([](Exchange& exchange) {
    const absl::Status status = SwapBytes(exchange, 1, 2);
    EXPECT_FALSE(status.ok());
    if (status.code() == absl::StatusCode::kInternal) {
      EXPECT_THAT(base::MessageOf(status), HasSubstr("sent 1 bytes"));
    }
  });
}

TEST(SharedExchangeTest, NamesTheRankThatDoesNotCome) {
  Ranks ranks(2);
  const auto exchange = ranks.Join(0, milliseconds(20));
  EXPECT_EQ(exchange.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(base::MessageOf(exchange.status()), HasSubstr("rank 1"));
}

}  // namespace
}  // namespace zp::apps
