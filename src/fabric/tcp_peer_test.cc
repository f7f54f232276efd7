// Both ends of the TCP weight plane against an other end that does not keep the protocol.

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "fabric/descriptor.h"
#include "fabric/memory_server.h"
#include "fabric/peer_source.h"
#include "fabric/socket_address.h"
#include "fabric/tcp_protocol.h"
#include "gtest/gtest.h"
#include "memory/buffer.h"

namespace zp::fabric {
namespace {

constexpr size_t kSliceBytes = 1 << 20;

// The error of one read, which must end within ten seconds.
int ErrorOf(ByteSource& source, std::span<std::byte> destination) {
  source.Start({.destination = destination});
  std::vector<SliceDone> done;
  while (done.empty()) {
    pollfd wait = {.fd = source.event_fd(), .events = POLLIN, .revents = 0};
    if (source.Arm() && poll(&wait, 1, 10'000) != 1) {
      ADD_FAILURE() << "the read does not end";
      return -1;
    }
    source.Poll(done);
  }
  return done.front().error;
}

// Accepts one connection, reads a greeting and a request, answers with `answer` and closes.
class LyingServer {
 public:
  explicit LyingServer(std::string answer)
      : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), answer_(std::move(answer)) {
    const SocketAddress address = *SocketAddress::Parse("127.0.0.1", 0);
    EXPECT_EQ(bind(listener_.number(), address.get(), address.size_bytes), 0);
    EXPECT_EQ(listen(listener_.number(), 1), 0);
    advertisement_.host = "127.0.0.1";
    advertisement_.port = PortOf(listener_.number());
    thread_ = std::jthread([this] {
      const Descriptor peer(accept(listener_.number(), nullptr, nullptr));
      char asked[sizeof(tcp::Hello) + sizeof(tcp::Request)];
      EXPECT_EQ(recv(peer.number(), asked, sizeof(asked), MSG_WAITALL), std::ssize(asked));
      send(peer.number(), answer_.data(), answer_.size(), MSG_NOSIGNAL);
    });
  }
  std::string advertisement() const { return advertisement_.ToString(); }

 private:
  Descriptor listener_;
  std::string answer_;
  tcp::Advertisement advertisement_;
  std::jthread thread_;
};

int ErrorOfReadFrom(const std::string& answer) {
  const LyingServer server(answer);
  memory::Buffer buffer(kSliceBytes, "test");
  const auto source = *OpenPeerSource(server.advertisement());
  return ErrorOf(*source, buffer.bytes());
}

std::string BytesOf(const auto& message) {
  return std::string(reinterpret_cast<const char*>(&message), sizeof(message));
}

TEST(TcpPeerSource, GivesUpAPeerThatTalksGarbage) {
  std::mt19937_64 random(1);
  std::string garbage;
  while (garbage.size() < kSliceBytes + 100) {
    garbage += BytesOf(random());
  }
  EXPECT_EQ(ErrorOfReadFrom(garbage), EPROTO);
  EXPECT_EQ(ErrorOfReadFrom("HTTP/1.1 400 Bad Request\r\n\r\n"), EPROTO);
}

TEST(TcpPeerSource, GivesUpAPeerThatAnswersSomethingElse) {
  EXPECT_EQ(ErrorOfReadFrom(BytesOf(tcp::Reply{.sequence = 1, .bytes = kSliceBytes})), EPROTO);
  EXPECT_EQ(ErrorOfReadFrom(BytesOf(tcp::Reply{.sequence = 0, .bytes = kSliceBytes - 1})), EPROTO);
}

TEST(TcpPeerSource, GivesUpAPeerThatStopsInTheMiddle) {
  EXPECT_EQ(ErrorOfReadFrom(""), ECONNRESET);
  EXPECT_EQ(ErrorOfReadFrom(BytesOf(tcp::Reply{.bytes = kSliceBytes}) + "abc"), ECONNRESET);
}

// What a raw connection that says `text` gets back before the server closes it.
std::string AnswerTo(const std::string& text, const std::string& advertisement) {
  const auto server = *tcp::Advertisement::Parse(advertisement);
  const SocketAddress address = *SocketAddress::Parse(server.host, server.port);
  const Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(socket.number(), address.get(), address.size_bytes), 0);
  send(socket.number(), text.data(), text.size(), MSG_NOSIGNAL);
  std::string answer(4096, '\0');
  const ssize_t count = recv(socket.number(), answer.data(), answer.size(), MSG_WAITALL);
  answer.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  return answer;
}

TEST(TcpMemoryServer, AnswersNobodyWhoLacksItsKeyOrAsksOutsideItsRegions) {
  memory::Buffer memory(kSliceBytes, "test");
  std::memset(memory.data(), 7, memory.size_bytes());
  const std::vector<MemoryRegion> regions = {{0, memory.bytes()}};
  const auto server = *ServeMemory(regions, {});
  const auto advertisement = *tcp::Advertisement::Parse(server->advertisement());

  EXPECT_EQ(AnswerTo("GET / HTTP/1.1\r\nHost: peer\r\n\r\n", server->advertisement()), "");
  EXPECT_EQ(
      AnswerTo(BytesOf(tcp::Hello{}) + BytesOf(tcp::Request{.bytes = 8}), server->advertisement()),
      "");
  const std::string hello = BytesOf(tcp::Hello{.key = advertisement.key});
  for (const tcp::Request request : {tcp::Request{.object = 1, .bytes = 8},
                                     tcp::Request{.offset = kSliceBytes, .bytes = 1},
                                     tcp::Request{.offset = UINT64_MAX - 3, .bytes = 8},
                                     tcp::Request{.offset = 1, .bytes = UINT32_MAX}}) {
    EXPECT_EQ(AnswerTo(hello + BytesOf(request), server->advertisement()), "");
  }

  std::mt19937_64 random(2);
  for (int i = 0; i < 100; ++i) {
    std::string noise = i % 2 == 0 ? hello : "";
    while (noise.size() < 48u + i * 24u) {
      noise += BytesOf(random());
    }
    EXPECT_EQ(AnswerTo(noise, server->advertisement()), "");
  }

  memory::Buffer buffer(kSliceBytes, "test");
  const auto source = *OpenPeerSource(server->advertisement());
  EXPECT_EQ(ErrorOf(*source, buffer.bytes()), 0);
  EXPECT_EQ(buffer.bytes().back(), std::byte{7});
}

TEST(TcpMemoryServer, IsNotTakenForItsPredecessorOnTheSamePort) {
  memory::Buffer memory(kSliceBytes, "test");
  const std::vector<MemoryRegion> regions = {{0, memory.bytes()}};
  auto server = *ServeMemory(regions, {});
  const uint16_t port = tcp::Advertisement::Parse(server->advertisement())->port;
  const auto source = *OpenPeerSource(server->advertisement());
  memory::Buffer buffer(kSliceBytes, "test");
  EXPECT_EQ(ErrorOf(*source, buffer.bytes()), 0);
  server.reset();
  server = *ServeMemory(regions, {.port = port});
  EXPECT_EQ(ErrorOf(*source, buffer.bytes()), ECONNRESET);
}

}  // namespace
}  // namespace zp::fabric
