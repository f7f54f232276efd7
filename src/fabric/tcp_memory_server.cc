#include "fabric/tcp_memory_server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/logging.h"
#include "fabric/descriptor.h"
#include "fabric/socket_address.h"
#include "fabric/tcp_protocol.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

constexpr size_t kMaxConnections = 256;
// Requests of one connection that are read ahead of their answers; the rest wait in its socket.
constexpr size_t kMaxRequests = 64;

using Regions = std::map<uint32_t, std::span<const std::byte>>;

// One peer. Everything returns false when the connection is to be dropped.
class Connection {
 public:
  Connection(Descriptor socket, const Regions& regions, const tcp::Key& key)
      : socket_(std::move(socket)), regions_(regions), key_(key) {}

  // Reads the requests that have come and sends as much as the socket takes.
  bool Advance() { return ReceiveRequests() && SendReplies(); }
  // What to wait for: requests while there is room for them, and room to send if that is short.
  uint32_t events() const {
    return (answers_.size() < kMaxRequests ? EPOLLIN : 0u) | (answers_.empty() ? 0u : EPOLLOUT);
  }
  const char* reason() const { return reason_; }

 private:
  struct Answer {
    tcp::Reply reply;
    std::span<const std::byte> bytes;
    size_t sent_bytes = 0;  // of the reply and the bytes
  };

  bool ReceiveRequests();
  bool TakeInput();
  bool SendReplies();
  bool Drop(const char* reason) {
    reason_ = reason;
    return false;
  }

  const Descriptor socket_;
  const Regions& regions_;
  const tcp::Key& key_;
  bool has_greeted_ = false;
  std::array<std::byte, 1024> input_ = {};
  size_t input_bytes_ = 0;
  std::deque<Answer> answers_;
  const char* reason_ = "";
};

bool Connection::ReceiveRequests() {
  while (answers_.size() < kMaxRequests) {
    const ssize_t count = recv(
        socket_.number(), input_.data() + input_bytes_, input_.size() - input_bytes_, MSG_DONTWAIT);
    if (count < 0) {
      return errno == EAGAIN || errno == EINTR || Drop(std::strerror(errno));
    }
    if (count == 0) {
      return Drop("closed by the peer");
    }
    input_bytes_ += static_cast<size_t>(count);
    if (!TakeInput()) {
      return false;
    }
  }
  return true;
}

// Turns whole messages of the input into answers.
bool Connection::TakeInput() {
  size_t used_bytes = 0;
  const auto take = [&](auto& message) {
    if (input_bytes_ - used_bytes < sizeof(message)) {
      return false;
    }
    std::memcpy(&message, input_.data() + used_bytes, sizeof(message));
    used_bytes += sizeof(message);
    return true;
  };
  tcp::Hello hello;
  if (!has_greeted_ && take(hello)) {
    if (hello.magic != tcp::Hello{}.magic || hello.key != key_) {
      return Drop("it does not have our advertisement");
    }
    has_greeted_ = true;
  }
  tcp::Request request;
  while (has_greeted_ && take(request)) {
    const auto region = regions_.find(request.object);
    if (region == regions_.end() || request.offset > region->second.size() ||
        request.bytes > region->second.size() - request.offset) {
      return Drop("it asked for what is not here");
    }
    answers_.push_back({.reply = {.sequence = request.sequence, .bytes = request.bytes},
                        .bytes = region->second.subspan(request.offset, request.bytes)});
  }
  std::memmove(input_.data(), input_.data() + used_bytes, input_bytes_ - used_bytes);
  input_bytes_ -= used_bytes;
  return true;
}

bool Connection::SendReplies() {
  while (!answers_.empty()) {
    Answer& answer = answers_.front();
    const size_t header_sent = std::min(answer.sent_bytes, sizeof(tcp::Reply));
    const auto rest = answer.bytes.subspan(answer.sent_bytes - header_sent);
    iovec parts[] = {{reinterpret_cast<std::byte*>(&answer.reply) + header_sent,
                      sizeof(tcp::Reply) - header_sent},
                     {const_cast<std::byte*>(rest.data()), rest.size()}};
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    const ssize_t count = sendmsg(socket_.number(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0) {
      return errno == EAGAIN || errno == EINTR || Drop(std::strerror(errno));
    }
    answer.sent_bytes += static_cast<size_t>(count);
    if (answer.sent_bytes == sizeof(tcp::Reply) + answer.bytes.size()) {
      answers_.pop_front();
    }
  }
  return true;
}

class TcpMemoryServer final : public MemoryServer {
 public:
  TcpMemoryServer(Regions regions, Descriptor listener, const tcp::Advertisement& advertisement);
  ~TcpMemoryServer() override {
    stop_.Signal();
    thread_.join();
  }
  const std::string& advertisement() const override { return advertisement_; }

 private:
  void Serve();
  void Accept();
  void Watch(int operation, int descriptor, uint32_t events);

  const Regions regions_;
  const tcp::Key key_;
  const std::string advertisement_;
  const Descriptor listener_;
  const Descriptor epoll_;
  EventDescriptor stop_;
  std::map<int, Connection> connections_;  // by descriptor
  std::jthread thread_;
};

TcpMemoryServer::TcpMemoryServer(Regions regions,
                                 Descriptor listener,
                                 const tcp::Advertisement& advertisement)
    : regions_(std::move(regions)),
      key_(advertisement.key),
      advertisement_(advertisement.ToString()),
      listener_(std::move(listener)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  ZP_CHECK(epoll_.is_open()) << std::strerror(errno);
  Watch(EPOLL_CTL_ADD, listener_.number(), EPOLLIN);
  Watch(EPOLL_CTL_ADD, stop_.number(), EPOLLIN);
  thread_ = std::jthread([this] { Serve(); });
}

void TcpMemoryServer::Watch(int operation, int descriptor, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = descriptor;
  ZP_CHECK(epoll_ctl(epoll_.number(), operation, descriptor, &event) == 0) << std::strerror(errno);
}

void TcpMemoryServer::Serve() {
  std::array<epoll_event, 64> events;
  while (true) {
    const int count = epoll_wait(epoll_.number(), events.data(), events.size(), -1);
    for (int i = 0; i < count; ++i) {
      const int descriptor = events[i].data.fd;
      if (descriptor == stop_.number()) {
        return;
      }
      if (descriptor == listener_.number()) {
        Accept();
        continue;
      }
      const auto found = connections_.find(descriptor);
      Connection& connection = found->second;
      const uint32_t waited_for = connection.events();
      if (!connection.Advance()) {
        base::log::info("memory server: a connection is dropped: {}", connection.reason());
        connections_.erase(found);
      } else if (connection.events() != waited_for) {
        Watch(EPOLL_CTL_MOD, descriptor, connection.events());
      }
    }
  }
}

void TcpMemoryServer::Accept() {
  Descriptor socket(accept4(listener_.number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.is_open()) {
    return;  // the peer has gone again
  }
  if (connections_.size() == kMaxConnections) {
    base::log::warn("memory server: more than {} connections", kMaxConnections);
    return;
  }
  const int number = socket.number();
  const int on = 1;
  setsockopt(number, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  const auto [added, is_new] = connections_.try_emplace(number, std::move(socket), regions_, key_);
  Watch(EPOLL_CTL_ADD, number, added->second.events());
}

absl::StatusOr<Descriptor> Listen(const std::string& host, uint16_t port) {
  ZP_ASSIGN_OR_RETURN(const SocketAddress address, SocketAddress::Parse(host, port));
  Descriptor listener(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  setsockopt(listener.number(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (!listener.is_open() || bind(listener.number(), address.get(), address.size_bytes) != 0 ||
      listen(listener.number(), kMaxConnections) != 0) {
    const std::string message = fmt::format("cannot listen on {} port {}", host, port);
    if (errno == EADDRNOTAVAIL) {
      return absl::InvalidArgumentError(message + ": not an address of this machine");
    }
    return absl::ErrnoToStatus(errno, message);
  }
  return listener;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryServer>> MakeTcpMemoryServer(
    std::span<const MemoryRegion> regions, const MemoryServerOptions& options) {
  Regions by_object;
  for (const MemoryRegion& region : regions) {
    by_object.emplace(region.object, region.bytes);
  }
  tcp::Advertisement advertisement;
  ZP_ASSIGN_OR_RETURN(advertisement.host, HostOfInterface(options.address));
  ZP_ASSIGN_OR_RETURN(Descriptor listener, Listen(advertisement.host, options.port));
  advertisement.port = PortOf(listener.number());
  if (getrandom(advertisement.key.data(), advertisement.key.size(), 0) !=
      std::ssize(advertisement.key)) {
    return absl::UnavailableError("the system gives no random numbers");
  }
  return std::make_unique<TcpMemoryServer>(
      std::move(by_object), std::move(listener), advertisement);
}

}  // namespace zp::fabric
