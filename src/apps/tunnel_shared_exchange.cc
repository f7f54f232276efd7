#include "apps/tunnel_shared_exchange.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>
#include <vector>

#include "apps/process_memory.h"
#include "base/check.h"
#include "fabric/descriptor.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

using Clock = SharedLinks::Clock;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// How often someone who waits looks whether those he waits for still run.
constexpr milliseconds kLifeCheck{100};
// Each rank writes lines of its own, and whatever follows in the memory is aligned.
constexpr size_t kLineBytes = 64;

timespec ToTimespec(nanoseconds time) {
  return {.tv_sec = time.count() / 1'000'000'000, .tv_nsec = time.count() % 1'000'000'000};
}

void SleepUntil(Clock::time_point time) {
  const timespec until = ToTimespec(time.time_since_epoch());
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
  }
}

// What one rank waits at, in any process.
class Bell {
 public:
  uint32_t count() const { return count_.load(std::memory_order_acquire); }
  void Ring() {
    count_.fetch_add(1, std::memory_order_release);
    Futex(FUTEX_WAKE, INT32_MAX, nullptr);
  }
  // Until it has rung since it was at `seen`, or for `limit`.
  void Wait(uint32_t seen, nanoseconds limit) {
    const timespec time = ToTimespec(limit);
    Futex(FUTEX_WAIT, seen, &time);
  }

 private:
  void Futex(int operation, uint32_t value, const timespec* time) {
    syscall(SYS_futex, &count_, operation, value, time, nullptr, 0);
  }

  std::atomic<uint32_t> count_;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);

// From one rank to another. The sender writes all but `taken_step`, and `step` last; the receiver
// answers with taken_step, and from then on the sender may write anew.
struct alignas(kLineBytes) Mail {
  std::atomic<uint64_t> step;
  std::atomic<uint64_t> taken_step;
  uint64_t pieces;  // iovec[piece_count] in the sender's process
  uint64_t piece_count;
  uint64_t bytes;
  int64_t arrival_ns;  // Clock
};

// What a rank tells all.
struct alignas(kLineBytes) Seat {
  std::atomic<int32_t> pid;  // 0: has not come
  std::atomic<bool> is_lost;
  Bell bell;
};

class SharedExchange final : public fabric::Exchange {
 public:
  SharedExchange(std::span<std::byte> memory,
                 SharedLinks& links,
                 int32_t rank,
                 int32_t rank_count,
                 milliseconds time_out)
      : seats_(reinterpret_cast<Seat*>(memory.data()), rank_count),
        mails_(reinterpret_cast<Mail*>(seats_.data() + seats_.size())),
        links_(links),
        rank_(rank),
        time_out_(time_out),
        processes_(rank_count),
        pieces_(rank_count) {}
  ~SharedExchange() override { Leave(); }

  absl::Status Join();
  int32_t rank() const override { return rank_; }
  int32_t rank_count() const override { return static_cast<int32_t>(seats_.size()); }
  absl::Status Swap(std::span<const fabric::SendParts> outgoing,
                    std::span<const fabric::ReceiveParts> incoming) override;

 private:
  Mail& mail(int32_t source, int32_t target) { return mails_[source * rank_count() + target]; }

  void Send(int32_t target, const fabric::SendParts& parts);
  absl::Status ReceiveAll(std::span<const fabric::ReceiveParts> incoming);
  absl::Status Receive(int32_t source, const fabric::ReceiveParts& parts);
  absl::Status AwaitReaders();
  template <typename Condition>
  absl::Status Await(Condition is_open);
  bool IsGone(int32_t rank) const;
  void Leave();
  void RingAll();

  const std::span<Seat> seats_;  // [rank]
  Mail* const mails_;            // [source][target]
  SharedLinks& links_;
  const int32_t rank_;
  const milliseconds time_out_;
  std::vector<fabric::Descriptor> processes_;  // [rank]: readable when it has ended
  std::vector<std::vector<iovec>> pieces_;     // [target]: lent until it is taken
  std::vector<int32_t> pending_;               // ranks that are waited for
  Clock::time_point last_arrival_;
  uint64_t step_ = 0;
  absl::Status failure_;
};

absl::Status SharedExchange::Join() {
  AllowReaders();
  seats_[rank_].pid = getpid();
  RingAll();
  const Clock::time_point deadline = Clock::now() + time_out_;
  for (int32_t rank = 0; rank < rank_count(); ++rank) {
    while (seats_[rank].pid == 0) {
      const uint32_t seen = seats_[rank_].bell.count();
      if (Clock::now() >= deadline) {
        return absl::DeadlineExceededError(fmt::format("rank {} has not come", rank));
      }
      if (seats_[rank].pid == 0) {
        seats_[rank_].bell.Wait(seen, std::min<nanoseconds>(deadline - Clock::now(), kLifeCheck));
      }
    }
    const int64_t descriptor = syscall(SYS_pidfd_open, seats_[rank].pid.load(), 0);
    if (descriptor < 0 && errno == ESRCH) {
      seats_[rank].is_lost = true;  // it came, and has ended
    }
    processes_[rank] = fabric::Descriptor(static_cast<int>(descriptor));
  }
  return absl::OkStatus();
}

absl::Status SharedExchange::Swap(std::span<const fabric::SendParts> outgoing,
                                  std::span<const fabric::ReceiveParts> incoming) {
  ZP_RETURN_IF_ERROR(failure_);
  ++step_;
  last_arrival_ = {};
  for (int32_t distance = 1; distance < rank_count(); ++distance) {
    const int32_t target = (rank_ + distance) % rank_count();
    Send(target, outgoing[target]);
  }
  failure_ = ReceiveAll(incoming);
  if (failure_.ok()) {
    failure_ = AwaitReaders();
  }
  if (!failure_.ok()) {
    Leave();  // the others need not wait for their time-outs
    return failure_;
  }
  SleepUntil(last_arrival_);
  return absl::OkStatus();
}

void SharedExchange::Send(int32_t target, const fabric::SendParts& parts) {
  std::vector<iovec>& pieces = pieces_[target];
  pieces.clear();
  size_t bytes = 0;
  for (const auto part : parts) {
    pieces.push_back({const_cast<std::byte*>(part.data()), part.size()});
    bytes += part.size();
  }
  const Clock::time_point arrival =
      links_.Book(rank_, target, static_cast<int64_t>(bytes), Clock::now());
  Mail& letter = mail(rank_, target);
  letter.pieces = reinterpret_cast<uint64_t>(pieces.data());
  letter.piece_count = pieces.size();
  letter.bytes = bytes;
  letter.arrival_ns = nanoseconds(arrival.time_since_epoch()).count();
  letter.step.store(step_, std::memory_order_release);
  seats_[target].bell.Ring();
}

// In the order in which they come.
absl::Status SharedExchange::ReceiveAll(std::span<const fabric::ReceiveParts> incoming) {
  pending_.clear();
  for (int32_t distance = 1; distance < rank_count(); ++distance) {
    pending_.push_back((rank_ + rank_count() - distance) % rank_count());
  }
  while (!pending_.empty()) {
    const auto has_come = [&](int32_t source) {
      return mail(source, rank_).step.load(std::memory_order_acquire) >= step_;
    };
    ZP_RETURN_IF_ERROR(Await(has_come));
    const auto come = std::ranges::find_if(pending_, has_come);
    const int32_t source = *come;
    pending_.erase(come);
    ZP_RETURN_IF_ERROR(Receive(source, incoming[source]));
  }
  return absl::OkStatus();
}

absl::Status SharedExchange::Receive(int32_t source, const fabric::ReceiveParts& parts) {
  Mail& letter = mail(source, rank_);
  std::vector<iovec> to;
  size_t bytes = 0;
  for (const auto part : parts) {
    to.push_back({part.data(), part.size()});
    bytes += part.size();
  }
  const uint64_t step = letter.step;
  if (step != step_ || letter.bytes != bytes) {
    return absl::InternalError(
        fmt::format("rank {} sent {} bytes of step {}; expected {} of step {}",
                    source,
                    letter.bytes,
                    step,
                    bytes,
                    step_));
  }
  if (bytes > 0) {
    const pid_t pid = seats_[source].pid;
    std::vector<iovec> from(letter.piece_count);
    const iovec list = {AddressThere(letter.pieces), from.size() * sizeof(iovec)};
    const iovec room = {from.data(), list.iov_len};
    absl::Status status = ReadProcess(pid, std::span(&list, 1), std::span(&room, 1));
    if (status.ok()) {
      status = ReadProcess(pid, from, to);
    }
    if (!status.ok()) {
      return absl::UnavailableError(
          fmt::format("rank {} is lost: {}", source, base::MessageOf(status)));
    }
  }
  if (seats_[source].is_lost.load(std::memory_order_acquire)) {
    // It gave up before this was taken: its memory may not be what it was.
    return absl::UnavailableError(fmt::format("rank {} is lost (step {})", source, step_));
  }
  last_arrival_ = std::max(last_arrival_, Clock::time_point(nanoseconds(letter.arrival_ns)));
  letter.taken_step.store(step_, std::memory_order_release);
  seats_[source].bell.Ring();
  return absl::OkStatus();
}

absl::Status SharedExchange::AwaitReaders() {
  for (int32_t target = 0; target < rank_count(); ++target) {
    if (target != rank_) {
      pending_.assign(1, target);
      ZP_RETURN_IF_ERROR(Await([&](int32_t reader) {
        return mail(rank_, reader).taken_step.load(std::memory_order_acquire) == step_;
      }));
    }
  }
  return absl::OkStatus();
}

// Until one of `pending_` is as it is waited for, or none can be any more.
template <typename Condition>
absl::Status SharedExchange::Await(Condition is_open) {
  Bell& bell = seats_[rank_].bell;
  const Clock::time_point deadline = Clock::now() + time_out_;
  while (true) {
    const uint32_t seen = bell.count();
    // Whoever is lost may have done before what is waited for: looked at in this order.
    const auto gone = std::ranges::find_if(pending_, [&](int32_t rank) { return IsGone(rank); });
    if (std::ranges::any_of(pending_, is_open)) {
      return absl::OkStatus();
    }
    if (gone != pending_.end()) {
      return absl::UnavailableError(fmt::format("rank {} is lost (step {})", *gone, step_));
    }
    const nanoseconds left = deadline - Clock::now();
    if (left.count() <= 0) {
      return absl::DeadlineExceededError(fmt::format("rank {}: nothing moved for {} ms (step {})",
                                                     pending_.front(),
                                                     time_out_.count(),
                                                     step_));
    }
    bell.Wait(seen, std::min<nanoseconds>(left, kLifeCheck));
  }
}

bool SharedExchange::IsGone(int32_t rank) const {
  pollfd end = {.fd = processes_[rank].number(), .events = POLLIN, .revents = 0};
  return seats_[rank].is_lost.load(std::memory_order_acquire) || poll(&end, 1, /*timeout=*/0) > 0;
}

void SharedExchange::Leave() {
  seats_[rank_].is_lost.store(true, std::memory_order_release);
  RingAll();
}

void SharedExchange::RingAll() { std::ranges::for_each(seats_, &Bell::Ring, &Seat::bell); }

}  // namespace

size_t SharedExchangeBytes(int32_t rank_count) {
  return rank_count * sizeof(Seat) + static_cast<size_t>(rank_count) * rank_count * sizeof(Mail);
}

absl::StatusOr<std::unique_ptr<fabric::Exchange>> JoinSharedExchange(std::span<std::byte> memory,
                                                                     SharedLinks& links,
                                                                     int32_t rank,
                                                                     int32_t rank_count,
                                                                     milliseconds time_out) {
  ZP_CHECK(memory.size() >= SharedExchangeBytes(rank_count) && rank < rank_count) << rank;
  auto exchange = std::make_unique<SharedExchange>(memory, links, rank, rank_count, time_out);
  ZP_RETURN_IF_ERROR(exchange->Join());
  return exchange;
}

}  // namespace zp::apps
