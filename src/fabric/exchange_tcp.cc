#include "fabric/exchange_tcp.h"

#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

// A sleeper is woken when so much has come (or all that is expected): fewer wakes, less CPU.
constexpr size_t kMaxWakeBytes = 256 << 10;

// Goes before each message.
struct Frame {
  uint64_t step = 0;
  uint64_t bytes = 0;
};

// Pieces of memory that a socket takes or fills bit by bit.
class Pieces {
 public:
  void Clear() {
    pieces_.clear();
    next_ = 0;
    total_bytes_ = 0;
    done_bytes_ = 0;
  }
  void Add(const void* data, size_t bytes) {
    if (bytes > 0) {
      pieces_.push_back({const_cast<void*>(data), bytes});
      total_bytes_ += bytes;
    }
  }
  bool is_done() const { return done_bytes_ == total_bytes_; }
  size_t done_bytes() const { return done_bytes_; }
  size_t rest_bytes() const { return total_bytes_ - done_bytes_; }

  msghdr Rest() {
    msghdr message = {};
    message.msg_iov = pieces_.data() + next_;
    message.msg_iovlen = std::min<size_t>(pieces_.size() - next_, IOV_MAX);
    return message;
  }
  void Advance(size_t bytes) {
    done_bytes_ += bytes;
    while (bytes > 0) {
      iovec& piece = pieces_[next_];
      const size_t part = std::min(bytes, piece.iov_len);
      piece.iov_base = static_cast<std::byte*>(piece.iov_base) + part;
      piece.iov_len -= part;
      bytes -= part;
      next_ += piece.iov_len == 0 ? 1 : 0;
    }
  }

 private:
  std::vector<iovec> pieces_;
  size_t next_ = 0;
  size_t total_bytes_ = 0;
  size_t done_bytes_ = 0;
};

// The connection to one rank and its two messages of this step.
class Link {
 public:
  Link(Descriptor socket, int32_t rank) : socket_(std::move(socket)), rank_(rank) {}

  void Begin(uint64_t step, const SendParts& outgoing, const ReceiveParts& incoming);
  // What to wait for; 0: both messages are through.
  short events() const {
    return static_cast<short>((outgoing_.is_done() ? 0 : POLLOUT) |
                              (incoming_.is_done() ? 0 : POLLIN));
  }
  void SetWakeBytes();
  absl::Status Send();
  absl::Status Receive();
  void Close() { socket_.Close(); }
  int socket() const { return socket_.number(); }
  int32_t rank() const { return rank_; }

 private:
  absl::Status Lost(const char* reason) const {
    return absl::UnavailableError(fmt::format("rank {} is lost: {}", rank_, reason));
  }

  Descriptor socket_;
  int32_t rank_ = 0;
  size_t wake_bytes_ = 1;  // SO_RCVLOWAT of the socket
  Frame sent_, expected_, received_;
  Pieces outgoing_, incoming_;
};

void Link::Begin(uint64_t step, const SendParts& outgoing, const ReceiveParts& incoming) {
  sent_ = expected_ = {.step = step};
  outgoing_.Clear();
  outgoing_.Add(&sent_, sizeof(sent_));
  for (const auto part : outgoing) {
    outgoing_.Add(part.data(), part.size());
    sent_.bytes += part.size();
  }
  incoming_.Clear();
  incoming_.Add(&received_, sizeof(received_));
  for (const auto part : incoming) {
    incoming_.Add(part.data(), part.size());
    expected_.bytes += part.size();
  }
}

absl::Status Link::Send() {
  while (!outgoing_.is_done()) {
    const msghdr message = outgoing_.Rest();
    const ssize_t count = sendmsg(socket_.number(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0) {
      return errno == EAGAIN || errno == EINTR ? absl::OkStatus() : Lost(std::strerror(errno));
    }
    outgoing_.Advance(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status Link::Receive() {
  while (!incoming_.is_done()) {
    msghdr message = incoming_.Rest();
    const ssize_t count = recvmsg(socket_.number(), &message, MSG_DONTWAIT);
    if (count < 0) {
      return errno == EAGAIN || errno == EINTR ? absl::OkStatus() : Lost(std::strerror(errno));
    }
    if (count == 0) {
      return Lost("closed by the peer");
    }
    incoming_.Advance(static_cast<size_t>(count));
    const bool has_frame = incoming_.done_bytes() >= sizeof(received_);
    if (has_frame && (received_.step != expected_.step || received_.bytes != expected_.bytes)) {
      return absl::InternalError(
          fmt::format("rank {} sent {} bytes of step {}; expected {} of step {}",
                      rank_,
                      received_.bytes,
                      received_.step,
                      expected_.bytes,
                      expected_.step));
    }
  }
  return absl::OkStatus();
}

void Link::SetWakeBytes() {
  // The frame alone first: a message of another length must not be waited for in vain.
  const bool has_frame = incoming_.done_bytes() >= sizeof(Frame);
  const size_t wake_bytes =
      has_frame ? std::clamp<size_t>(incoming_.rest_bytes(), 1, kMaxWakeBytes) : 1;
  if (wake_bytes != wake_bytes_) {
    wake_bytes_ = wake_bytes;
    const int bytes = static_cast<int>(wake_bytes);
    setsockopt(socket_.number(), SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof(bytes));
  }
}

class TcpExchange final : public Exchange {
 public:
  TcpExchange(std::vector<Descriptor> sockets, int32_t rank, std::chrono::milliseconds time_out);

  int32_t rank() const override { return rank_; }
  int32_t rank_count() const override { return static_cast<int32_t>(links_.size()) + 1; }
  absl::Status Swap(std::span<const SendParts> outgoing,
                    std::span<const ReceiveParts> incoming) override;

 private:
  absl::Status MoveAll();
  absl::Status Move(const pollfd& wait, Link& link);

  const int32_t rank_;
  const std::chrono::milliseconds time_out_;
  std::vector<Link> links_;  // to the others, from the next higher rank round to the next lower
  std::vector<pollfd> waits_;
  std::vector<Link*> waiting_;  // beside waits_
  uint64_t step_ = 0;
  absl::Status failure_;
};

TcpExchange::TcpExchange(std::vector<Descriptor> sockets,
                         int32_t rank,
                         std::chrono::milliseconds time_out)
    : rank_(rank), time_out_(time_out) {
  const auto rank_count = static_cast<int32_t>(sockets.size());
  for (int32_t distance = 1; distance < rank_count; ++distance) {
    const int32_t peer = (rank + distance) % rank_count;
    ZP_CHECK(sockets[peer].is_open()) << "rank " << peer;
    links_.emplace_back(std::move(sockets[peer]), peer);
  }
}

absl::Status TcpExchange::Swap(std::span<const SendParts> outgoing,
                               std::span<const ReceiveParts> incoming) {
  ZP_RETURN_IF_ERROR(failure_);
  ++step_;
  for (Link& link : links_) {
    link.Begin(step_, outgoing[link.rank()], incoming[link.rank()]);
  }
  failure_ = MoveAll();
  if (!failure_.ok()) {
    std::ranges::for_each(links_, &Link::Close);  // the others need not wait for their time-outs
  }
  return failure_;
}

absl::Status TcpExchange::MoveAll() {
  while (true) {
    waits_.clear();
    waiting_.clear();
    for (Link& link : links_) {
      if (const short events = link.events(); events != 0) {
        link.SetWakeBytes();
        waits_.push_back({.fd = link.socket(), .events = events, .revents = 0});
        waiting_.push_back(&link);
      }
    }
    if (waits_.empty()) {
      return absl::OkStatus();
    }
    const int count = poll(waits_.data(), waits_.size(), static_cast<int>(time_out_.count()));
    if (count == 0) {
      return absl::DeadlineExceededError(fmt::format("rank {}: nothing moved for {} ms (step {})",
                                                     waiting_.front()->rank(),
                                                     time_out_.count(),
                                                     step_));
    }
    for (size_t i = 0; i < waits_.size(); ++i) {
      ZP_RETURN_IF_ERROR(Move(waits_[i], *waiting_[i]));
    }
  }
}

absl::Status TcpExchange::Move(const pollfd& wait, Link& link) {
  const bool has_failed = (wait.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0;
  if (has_failed || (wait.revents & POLLIN) != 0) {  // before sending: it may say why that fails
    ZP_RETURN_IF_ERROR(link.Receive());
  }
  if (has_failed || (wait.revents & POLLOUT) != 0) {
    ZP_RETURN_IF_ERROR(link.Send());
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<Exchange> MakeTcpExchange(std::vector<Descriptor> sockets,
                                          int32_t rank,
                                          std::chrono::milliseconds time_out) {
  return std::make_unique<TcpExchange>(std::move(sockets), rank, time_out);
}

}  // namespace zp::fabric
