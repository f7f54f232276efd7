#include "fabric/exchange_mesh.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "fabric/socket_address.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxWaiting = 256;
// A rank that does not listen yet is tried again after this.
constexpr std::chrono::milliseconds kRetryPause{20};
// As much as a fast link brings while a rank computes; the system may grant less.
constexpr int kSocketBufferBytes = 8 << 20;

// The first bytes of a connection, from the higher rank to the lower one.
struct Hello {
  uint64_t magic = 0x3148435845465a00ull;  // "ZFEXCH1"
  int32_t rank = 0;
  int32_t rank_count = 0;
};

// Without the privilege to exceed the system's limit its own tuning does better than the limit.
void SetBuffers(int socket) {
  const int bytes = kSocketBufferBytes;
  setsockopt(socket, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes));
  setsockopt(socket, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
}

bool IsReady(int socket, short events, Clock::time_point deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  pollfd wait = {.fd = socket, .events = events, .revents = 0};
  return poll(&wait, 1, static_cast<int>(std::max<int64_t>(left, 0))) == 1;
}

// Not open: the rank does not listen (yet).
Descriptor TryConnect(const SocketAddress& address, const Hello& hello, Clock::time_point end) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  SetBuffers(socket.number());
  int error = connect(socket.number(), address.get(), address.size_bytes) == 0 ? 0 : errno;
  if (error == EINPROGRESS && IsReady(socket.number(), POLLOUT, end)) {
    socklen_t size_bytes = sizeof(error);
    getsockopt(socket.number(), SOL_SOCKET, SO_ERROR, &error, &size_bytes);
  }
  const bool is_greeted =
      error == 0 && send(socket.number(), &hello, sizeof(hello), MSG_NOSIGNAL) ==
                        static_cast<ssize_t>(sizeof(hello));
  return is_greeted ? std::move(socket) : Descriptor();
}

absl::StatusOr<Descriptor> ConnectTo(const RankAddress& peer,
                                     int32_t peer_rank,
                                     const Hello& hello,
                                     Clock::time_point deadline) {
  ZP_ASSIGN_OR_RETURN(const SocketAddress address, SocketAddress::Parse(peer.host, peer.port));
  while (Clock::now() < deadline) {
    if (Descriptor socket = TryConnect(address, hello, deadline); socket.is_open()) {
      return socket;
    }
    std::this_thread::sleep_for(kRetryPause);
  }
  return absl::DeadlineExceededError(
      fmt::format("rank {} does not answer at {} port {}", peer_rank, peer.host, peer.port));
}

// The hello of whoever connected; magic 0 if it is none of ours.
Hello ReadHello(int socket, Clock::time_point deadline) {
  Hello hello;
  const bool has_all =
      IsReady(socket, POLLIN, std::min(deadline, Clock::now() + std::chrono::seconds(1))) &&
      recv(socket, &hello, sizeof(hello), 0) == static_cast<ssize_t>(sizeof(hello));
  return has_all ? hello : Hello{.magic = 0};
}

absl::Status AcceptHigherRanks(const Descriptor& listener,
                               int32_t rank,
                               Clock::time_point deadline,
                               std::vector<Descriptor>& sockets) {
  const auto rank_count = static_cast<int32_t>(sockets.size());
  while (true) {
    const auto missing = std::find_if(sockets.begin() + rank + 1,
                                      sockets.end(),
                                      [](const Descriptor& socket) { return !socket.is_open(); });
    if (missing == sockets.end()) {
      return absl::OkStatus();
    }
    if (!IsReady(listener.number(), POLLIN, deadline)) {
      return absl::DeadlineExceededError(
          fmt::format("rank {} has not connected", missing - sockets.begin()));
    }
    Descriptor socket(accept4(listener.number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    const Hello hello = ReadHello(socket.number(), deadline);
    if (hello.magic == Hello{}.magic && hello.rank_count == rank_count && hello.rank > rank &&
        hello.rank < rank_count) {
      sockets[hello.rank] = std::move(socket);
    }
  }
}

}  // namespace

absl::StatusOr<Descriptor> ListenForRanks(const RankAddress& address) {
  ZP_ASSIGN_OR_RETURN(const SocketAddress place, SocketAddress::Parse(address.host, address.port));
  Descriptor listener(socket(place.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  setsockopt(listener.number(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  SetBuffers(listener.number());  // what it accepts inherits them
  if (!listener.is_open() || bind(listener.number(), place.get(), place.size_bytes) != 0 ||
      listen(listener.number(), kMaxWaiting) != 0) {
    return absl::ErrnoToStatus(
        errno, fmt::format("cannot listen on {} port {}", address.host, address.port));
  }
  return listener;
}

absl::StatusOr<std::vector<Descriptor>> ConnectMesh(const Descriptor& listener,
                                                    int32_t rank,
                                                    std::span<const RankAddress> addresses,
                                                    std::chrono::milliseconds time_out) {
  const Clock::time_point deadline = Clock::now() + time_out;
  std::vector<Descriptor> sockets(addresses.size());
  const Hello hello{.rank = rank, .rank_count = static_cast<int32_t>(addresses.size())};
  for (int32_t peer = 0; peer < rank; ++peer) {
    ZP_ASSIGN_OR_RETURN(sockets[peer], ConnectTo(addresses[peer], peer, hello, deadline));
  }
  ZP_RETURN_IF_ERROR(AcceptHigherRanks(listener, rank, deadline, sockets));
  for (const Descriptor& socket : sockets) {
    const int on = 1;
    setsockopt(socket.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  return sockets;
}

}  // namespace zp::fabric
