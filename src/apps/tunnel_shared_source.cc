#include "apps/tunnel_shared_source.h"

#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "apps/process_memory.h"
#include "base/check.h"
#include "fabric/descriptor.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

using Clock = SharedLinks::Clock;

// As much as keeps a link busy while the gather thread waits for its core.
constexpr int32_t kReadsInFlight = 4;

class SharedSource final : public fabric::ByteSource {
 public:
  SharedSource(const HeldOutMemory& memory, SharedLinks& links, int32_t holding, int32_t reading)
      : memory_(memory),
        links_(links),
        holding_rank_(holding),
        reading_rank_(reading),
        name_(fmt::format("rank {}, process {}", holding, memory.pid)),
        timer_(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) {
    ZP_CHECK(timer_.is_open()) << std::strerror(errno);
    reads_.reserve(kReadsInFlight);
  }

  std::string_view name() const override { return name_; }
  int32_t max_reads_in_flight() const override { return kReadsInFlight; }
  void Start(const fabric::SliceRead& read) override;
  void Poll(std::vector<fabric::SliceDone>& done) override;
  bool Arm() override;
  int event_fd() const override { return timer_.number(); }
  void Abandon() override { is_abandoned_ = !reads_.empty(); }

 private:
  // A read on its way.
  struct Read {
    fabric::SliceRead slice;
    Clock::time_point arrival;
  };

  bool IsHeldOut(const fabric::SliceRead& read) const {
    return read.object == 0 && read.offset <= memory_.bytes &&
           read.destination.size() <= memory_.bytes - read.offset;
  }
  int Copy(const fabric::SliceRead& read) const;

  const HeldOutMemory memory_;
  SharedLinks& links_;
  const int32_t holding_rank_;
  const int32_t reading_rank_;
  const std::string name_;
  const fabric::Descriptor timer_;
  std::vector<Read> reads_;
  bool is_abandoned_ = false;  // until Poll has said so
};

void SharedSource::Start(const fabric::SliceRead& read) {
  ZP_CHECK(std::ssize(reads_) < kReadsInFlight) << name_;
  const Clock::time_point now = Clock::now();
  const auto bytes = static_cast<int64_t>(read.destination.size());
  reads_.push_back(
      {read, IsHeldOut(read) ? links_.Book(holding_rank_, reading_rank_, bytes, now) : now});
}

void SharedSource::Poll(std::vector<fabric::SliceDone>& done) {
  const Clock::time_point now = Clock::now();
  const auto has_ended = [&](const Read& read) {
    if (!is_abandoned_ && read.arrival > now) {
      return false;
    }
    done.push_back(
        {.token = read.slice.token, .error = is_abandoned_ ? ECANCELED : Copy(read.slice)});
    return true;
  };
  std::erase_if(reads_, has_ended);
  is_abandoned_ = false;
}

int SharedSource::Copy(const fabric::SliceRead& read) const {
  if (!IsHeldOut(read)) {
    return ERANGE;
  }
  const iovec from = {AddressThere(memory_.address + read.offset), read.destination.size()};
  const iovec to = {read.destination.data(), read.destination.size()};
  return ReadProcess(memory_.pid, std::span(&from, 1), std::span(&to, 1)).ok() ? 0 : ECONNRESET;
}

bool SharedSource::Arm() {
  itimerspec at = {};  // zero: no alarm
  if (!reads_.empty()) {
    const Clock::time_point next = std::ranges::min_element(reads_, {}, &Read::arrival)->arrival;
    if (is_abandoned_ || next <= Clock::now()) {
      return false;
    }
    const auto ns = std::chrono::nanoseconds(next.time_since_epoch()).count();
    at.it_value = {.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  }
  ZP_CHECK(timerfd_settime(timer_.number(), TFD_TIMER_ABSTIME, &at, nullptr) == 0)
      << std::strerror(errno);
  return true;
}

}  // namespace

HeldOutMemory HeldOutMemory::Of(std::span<const std::byte> bytes) {
  return {
      .pid = getpid(), .address = reinterpret_cast<uint64_t>(bytes.data()), .bytes = bytes.size()};
}

std::string HeldOutMemory::ToText() const { return fmt::format("{}:{}:{}", pid, address, bytes); }

absl::StatusOr<HeldOutMemory> HeldOutMemory::FromText(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  HeldOutMemory memory;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &memory.pid) ||
      !absl::SimpleAtoi(parts[1], &memory.address) || !absl::SimpleAtoi(parts[2], &memory.bytes)) {
    return absl::InvalidArgumentError(fmt::format("'{}' names no memory of a process", text));
  }
  return memory;
}

std::unique_ptr<fabric::ByteSource> MakeSharedSource(const HeldOutMemory& memory,
                                                     SharedLinks& links,
                                                     int32_t holding_rank,
                                                     int32_t reading_rank) {
  return std::make_unique<SharedSource>(memory, links, holding_rank, reading_rank);
}

}  // namespace zp::apps
