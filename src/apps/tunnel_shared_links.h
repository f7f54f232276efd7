// Links that cost no core: a timetable, in memory that ranks share, of when each rank's link is
// busy. Who moves bytes books them, and treats them as arrived at the time that it is told.
//
// It is a switch whose output queues never lose anything: each rank has a link to it, full duplex,
// and of both directions as much goes as the rate says. Time is cut into bins that carry 64 KiB.
// A booking takes what is left of its sender's outgoing and of its receiver's incoming bins, from
// now on, until it has all its bytes: first come, first served, and a gap that one booking has to
// leave is there for the next.
//
// Thread safety: any thread of any process that maps the memory; without locks, since a rank under
// a CPU quota would hold one while it is stopped. Where two book the same bin at the same moment
// one may leave a gap that it could have had; a bin never carries more than its bytes.
// Ownership: the memory is the caller's and outlives it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

namespace zp::apps {

class SharedLinks {
 public:
  using Clock = std::chrono::steady_clock;  // one for all processes of a machine

  static size_t BytesFor(int32_t rank_count);  // whole lines of 64 bytes

  // On memory of BytesFor(rank_count) that was zero before the first rank came; links have no limit
  // before SetRate.
  SharedLinks(std::span<std::byte> memory, int32_t rank_count);

  // Of every link, in each direction. While nothing is on its way.
  void SetRate(double bytes_per_s);

  // When `bytes` that leave `source_rank` now have all come to `target_rank`.
  // REQUIRES: different ranks. More than 4 GiB ahead the links count as free.
  Clock::time_point Book(int32_t source_rank,
                         int32_t target_rank,
                         int64_t bytes,
                         Clock::time_point now);

 private:
  struct Table;
  struct Direction;

  Direction& outgoing(int32_t rank) const;
  Direction& incoming(int32_t rank) const;

  Table* const table_;
  const int32_t rank_count_;
};

}  // namespace zp::apps
