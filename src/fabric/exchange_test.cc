#include "fabric/exchange.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "fabric/exchange_local.h"
#include "fabric/exchange_mesh.h"
#include "fabric/exchange_tcp.h"
#include "fabric/socket_address.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::fabric {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

enum class Transport { kLocal, kTcp };

std::vector<std::unique_ptr<Exchange>> MakeExchanges(Transport transport,
                                                     int32_t rank_count,
                                                     milliseconds time_out) {
  if (transport == Transport::kLocal) {
    return MakeLocalExchanges(rank_count, time_out);
  }
  std::vector<Descriptor> listeners;
  std::vector<RankAddress> addresses;
  for (int32_t rank = 0; rank < rank_count; ++rank) {
    listeners.push_back(*ListenForRanks({.host = "127.0.0.1"}));
    addresses.push_back({"127.0.0.1", PortOf(listeners.back().number())});
  }
  std::vector<std::unique_ptr<Exchange>> exchanges(rank_count);
  std::vector<std::jthread> threads;
  for (int32_t rank = 0; rank < rank_count; ++rank) {
    threads.emplace_back([&, rank] {
      auto sockets = ConnectMesh(listeners[rank], rank, addresses, milliseconds(10'000));
      ASSERT_TRUE(sockets.ok()) << sockets.status();
      exchanges[rank] = MakeTcpExchange(std::move(*sockets), rank, time_out);
    });
  }
  threads.clear();
  return exchanges;
}

void OnEachRank(std::vector<std::unique_ptr<Exchange>>& exchanges,
                const std::function<void(Exchange&)>& task) {
  std::vector<std::jthread> threads;
  for (const auto& exchange : exchanges) {
    threads.emplace_back([&] { task(*exchange); });
  }
}

// The message of a step from one rank to another: any length up to 3 MB, often none.
std::vector<std::byte> Message(int step, int32_t source, int32_t destination) {
  std::mt19937 random(static_cast<uint32_t>(step * 10'000 + source * 100 + destination));
  std::vector<std::byte> bytes(random() % 3 == 0 ? 0 : random() % 3'000'000);
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(random());
  }
  return bytes;
}

// Cut in pieces of any length, some of them empty.
template <typename Parts>
Parts Cut(auto& bytes, uint32_t seed) {
  std::mt19937 random(seed);
  Parts parts;
  size_t begin = 0;
  while (begin < bytes.size()) {
    const size_t count = random() % 5 == 0 ? 0 : std::min(bytes.size() - begin, random() % 2000ul);
    parts.emplace_back(bytes.data() + begin, count);
    begin += count;
  }
  return parts;
}

absl::Status SwapOneByte(Exchange& exchange, size_t receive_bytes = 1) {
  const auto rank_count = static_cast<size_t>(exchange.rank_count());
  const std::byte out{1};
  std::vector<std::vector<std::byte>> in(rank_count, std::vector<std::byte>(receive_bytes));
  const std::vector<SendParts> outgoing(rank_count, SendParts{std::span(&out, 1)});
  std::vector<ReceiveParts> incoming;
  for (auto& bytes : in) {
    incoming.push_back({std::span(bytes)});
  }
  return exchange.Swap(outgoing, incoming);
}

class ExchangeTest : public testing::TestWithParam<Transport> {};

TEST_P(ExchangeTest, EveryRankGetsWhatEachOtherSent) {
  for (const int32_t rank_count : {1, 2, 3, 4}) {
    auto exchanges = MakeExchanges(GetParam(), rank_count, milliseconds(60'000));
    OnEachRank(exchanges, [&](Exchange& exchange) {
      const int32_t rank = exchange.rank();
      ASSERT_EQ(exchange.rank_count(), rank_count);
      for (int step = 0; step < 6; ++step) {
        std::vector<std::vector<std::byte>> out(rank_count), in(rank_count), expected(rank_count);
        std::vector<SendParts> outgoing(rank_count);
        std::vector<ReceiveParts> incoming(rank_count);
        for (int32_t peer = 0; peer < rank_count; ++peer) {
          if (peer != rank) {
            out[peer] = Message(step, rank, peer);
            expected[peer] = Message(step, peer, rank);
            in[peer].resize(expected[peer].size());
            outgoing[peer] = Cut<SendParts>(out[peer], static_cast<uint32_t>(rank));
            incoming[peer] = Cut<ReceiveParts>(in[peer], static_cast<uint32_t>(rank + 100));
          }
        }
        const absl::Status status = exchange.Swap(outgoing, incoming);
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_TRUE(in == expected) << "step " << step << ", rank " << rank;
      }
    });
  }
}

TEST_P(ExchangeTest, ALostRankEndsItForAll) {
  auto exchanges = MakeExchanges(GetParam(), 3, milliseconds(60'000));
  exchanges.pop_back();
  OnEachRank(exchanges, [](Exchange& exchange) {
    const absl::Status first = SwapOneByte(exchange);
    EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable) << first;
    EXPECT_EQ(SwapOneByte(exchange), first);
  });
}

TEST_P(ExchangeTest, ASilentRankEndsItAfterTheTimeOut) {
  auto exchanges = MakeExchanges(GetParam(), 2, milliseconds(50));
  const absl::Status status = SwapOneByte(*exchanges[0]);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
}

TEST_P(ExchangeTest, AMessageOfAnotherLengthIsRefused) {
  auto exchanges = MakeExchanges(GetParam(), 2, milliseconds(60'000));
  OnEachRank(exchanges, [](Exchange& exchange) {
    const absl::Status status = SwapOneByte(exchange, 2);
    EXPECT_FALSE(status.ok());
    if (status.code() == absl::StatusCode::kInternal) {
      EXPECT_THAT(base::MessageOf(status), HasSubstr("sent 1 bytes"));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Transports,
                         ExchangeTest,
                         testing::Values(Transport::kLocal, Transport::kTcp),
                         [](const auto& transport) {
                           return transport.param == Transport::kLocal ? "Local" : "Tcp";
                         });

TEST(ConnectMesh, NamesTheRankThatDoesNotCome) {
  const Descriptor listener = *ListenForRanks({.host = "127.0.0.1"});
  const Descriptor other = *ListenForRanks({.host = "127.0.0.1"});
  const std::vector<RankAddress> addresses = {{"127.0.0.1", PortOf(listener.number())},
                                              {"127.0.0.1", PortOf(other.number())}};
  const auto sockets = ConnectMesh(listener, 0, addresses, milliseconds(50));
  EXPECT_EQ(sockets.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(base::MessageOf(sockets.status()), HasSubstr("rank 1"));
}

}  // namespace
}  // namespace zp::fabric
