#include "fabric/tcp_peer_source.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "fabric/descriptor.h"
#include "fabric/socket_address.h"
#include "fabric/tcp_protocol.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

// What one Poll receives at most, so that it returns while the peer sends faster than it copies.
constexpr int64_t kMaxPollBytes = 4 << 20;
// A sleeper is woken when so much has come (or all that is expected): fewer wakes, less CPU.
constexpr int64_t kMaxWakeBytes = 512 << 10;

class TcpPeerSource final : public ByteSource {
 public:
  TcpPeerSource(const tcp::Advertisement& advertisement,
                const SocketAddress& address,
                int32_t depth)
      : name_(fmt::format("peer {}:{}", advertisement.host, advertisement.port)),
        address_(address),
        key_(advertisement.key),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        reads_(depth) {
    ZP_CHECK(epoll_.is_open()) << std::strerror(errno);
    ended_.reserve(depth);
    output_.reserve(sizeof(tcp::Hello) + depth * sizeof(tcp::Request));
  }

  std::string_view name() const override { return name_; }
  int32_t max_reads_in_flight() const override { return static_cast<int32_t>(reads_.size()); }
  void Start(const SliceRead& read) override;
  void Poll(std::vector<SliceDone>& done) override;
  bool Arm() override;
  int event_fd() const override { return epoll_.number(); }
  void Abandon() override { Disconnect(ECANCELED); }

 private:
  SliceRead& first() { return reads_[first_sequence_ % reads_.size()]; }
  size_t in_flight() const { return next_sequence_ - first_sequence_; }

  int Connect();
  void Disconnect(int error);
  template <typename Message>
  void Put(const Message& message);
  void SendOutput();
  void ExpectSilence();
  bool Receive();
  void Watch(int operation, uint32_t events);

  const std::string name_;
  const SocketAddress address_;
  const tcp::Key key_;
  const Descriptor epoll_;  // holds the socket: readable when that has something
  Descriptor socket_;       // not open: no connection
  bool waits_to_send_ = false;

  std::vector<std::byte> output_;  // not yet sent
  std::vector<SliceRead> reads_;   // in flight; a ring, by sequence
  uint64_t first_sequence_ = 0;    // the oldest in flight: replies come in order
  uint64_t next_sequence_ = 0;
  int64_t expected_bytes_ = 0;  // replies and bytes of all in flight that have not arrived
  tcp::Reply reply_;            // of the oldest
  size_t received_bytes_ = 0;   // of its reply and its bytes
  int wake_bytes_ = 1;          // SO_RCVLOWAT of the socket
  std::vector<SliceDone> ended_;
};

void TcpPeerSource::Start(const SliceRead& read) {
  ZP_CHECK(in_flight() + ended_.size() < reads_.size())
      << name_ << ": more than " << reads_.size() << " reads";
  if (socket_.is_open() && in_flight() == 0) {
    ExpectSilence();
  }
  const int error = socket_.is_open() ? 0 : Connect();
  const uint64_t sequence = next_sequence_++;
  reads_[sequence % reads_.size()] = read;
  expected_bytes_ += static_cast<int64_t>(sizeof(tcp::Reply) + read.destination.size());
  Put(tcp::Request{.sequence = sequence,
                   .offset = read.offset,
                   .object = read.object,
                   .bytes = static_cast<uint32_t>(read.destination.size())});
  if (error != 0) {
    return Disconnect(error);
  }
  SendOutput();
}

// Begins a connection; returns an errno value where that fails at once.
int TcpPeerSource::Connect() {
  first_sequence_ = next_sequence_ = 0;
  expected_bytes_ = 0;
  received_bytes_ = 0;
  wake_bytes_ = 1;
  socket_ = Descriptor(socket(address_.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  ZP_CHECK(socket_.is_open()) << std::strerror(errno);
  const int on = 1;
  setsockopt(socket_.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  Put(tcp::Hello{.key = key_});
  waits_to_send_ = true;
  Watch(EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
  const bool has_failed = connect(socket_.number(), address_.get(), address_.size_bytes) != 0;
  return has_failed && errno != EINPROGRESS ? errno : 0;
}

// Ends all reads. Only our own recv writes to destinations, so from here on nothing does.
void TcpPeerSource::Disconnect(int error) {
  socket_.Close();
  output_.clear();
  expected_bytes_ = 0;
  for (; first_sequence_ < next_sequence_; ++first_sequence_) {
    ended_.push_back({.token = first().token, .error = error});
  }
}

template <typename Message>
void TcpPeerSource::Put(const Message& message) {
  const auto bytes = std::as_bytes(std::span(&message, 1));
  output_.insert(output_.end(), bytes.begin(), bytes.end());
}

void TcpPeerSource::SendOutput() {
  if (!output_.empty()) {
    const ssize_t count =
        send(socket_.number(), output_.data(), output_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    // ENOTCONN: still connecting.
    if (count < 0 && errno != EAGAIN && errno != EINTR && errno != ENOTCONN) {
      return Disconnect(errno);
    }
    output_.erase(output_.begin(), output_.begin() + std::max<ssize_t>(count, 0));
  }
  if (waits_to_send_ == output_.empty()) {
    waits_to_send_ = !output_.empty();
    Watch(EPOLL_CTL_MOD, waits_to_send_ ? EPOLLIN | EPOLLOUT : EPOLLIN);
  }
}

void TcpPeerSource::Watch(int operation, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  ZP_CHECK(epoll_ctl(epoll_.number(), operation, socket_.number(), &event) == 0)
      << std::strerror(errno);
}

void TcpPeerSource::Poll(std::vector<SliceDone>& done) {
  if (socket_.is_open()) {
    SendOutput();
  }
  if (socket_.is_open() && in_flight() == 0) {
    ExpectSilence();
  }
  const int64_t enough = expected_bytes_ - kMaxPollBytes;
  while (in_flight() > 0 && expected_bytes_ > enough && Receive()) {
  }
  done.insert(done.end(), ended_.begin(), ended_.end());
  ended_.clear();
}

// Nothing is in flight: a peer that says something, or goes, loses the connection.
void TcpPeerSource::ExpectSilence() {
  std::byte unasked;
  const ssize_t count = recv(socket_.number(), &unasked, 1, MSG_DONTWAIT);
  if (count >= 0 || (errno != EAGAIN && errno != EINTR)) {
    Disconnect(EPROTO);
  }
}

// Receives more of the oldest read. False if there is no more for now.
bool TcpPeerSource::Receive() {
  const size_t header_bytes = std::min(received_bytes_, sizeof(reply_));
  const auto rest = first().destination.subspan(received_bytes_ - header_bytes);
  iovec parts[] = {
      {reinterpret_cast<std::byte*>(&reply_) + header_bytes, sizeof(reply_) - header_bytes},
      {rest.data(), rest.size()}};
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  const ssize_t count = recvmsg(socket_.number(), &message, MSG_DONTWAIT);
  if (count <= 0) {
    if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
      Disconnect(count == 0 ? ECONNRESET : errno);
    }
    return false;
  }
  received_bytes_ += static_cast<size_t>(count);
  expected_bytes_ -= count;
  const SliceRead& read = first();
  if (received_bytes_ >= sizeof(reply_) &&
      (reply_.sequence != first_sequence_ || reply_.bytes != read.destination.size())) {
    Disconnect(EPROTO);
    return false;
  }
  if (received_bytes_ < sizeof(reply_) + read.destination.size()) {
    return false;  // the socket is empty
  }
  ended_.push_back({.token = read.token});
  ++first_sequence_;
  received_bytes_ = 0;
  return true;
}

bool TcpPeerSource::Arm() {
  if (!ended_.empty()) {
    return false;
  }
  const int wake_bytes = static_cast<int>(std::clamp<int64_t>(expected_bytes_, 1, kMaxWakeBytes));
  if (socket_.is_open() && wake_bytes != wake_bytes_) {
    wake_bytes_ = wake_bytes;
    setsockopt(socket_.number(), SOL_SOCKET, SO_RCVLOWAT, &wake_bytes, sizeof(wake_bytes));
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> MakeTcpPeerSource(const std::string& advertisement,
                                                              int32_t depth) {
  ZP_ASSIGN_OR_RETURN(const tcp::Advertisement parsed, tcp::Advertisement::Parse(advertisement));
  ZP_ASSIGN_OR_RETURN(const SocketAddress address, SocketAddress::Parse(parsed.host, parsed.port));
  return std::make_unique<TcpPeerSource>(parsed, address, depth);
}

}  // namespace zp::fabric
