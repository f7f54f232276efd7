#include "apps/tunnel_shared_links.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/check.h"

namespace zp::apps {
namespace {

constexpr double kBinBytes = 65536;
constexpr int64_t kShortestBinNs = 1000;
constexpr int64_t kBinCount = 65536;  // of a direction, used round and round
constexpr int64_t kMostBinBytes = UINT32_MAX;

// How many bytes of a bin are booked, and which of those that share its place it is.
uint64_t Entry(int64_t bin, int64_t booked) {
  return static_cast<uint64_t>(bin) << 32 | static_cast<uint64_t>(booked);
}

bool IsOf(uint64_t entry, int64_t bin) { return entry >> 32 == (Entry(bin, 0) >> 32); }

int64_t BookedBytes(uint64_t entry, int64_t bin) {
  return IsOf(entry, bin) ? static_cast<int64_t>(entry & UINT32_MAX) : 0;
}

}  // namespace

// bin_ns is written last: who sees it sees the other. A line of its own, so that what follows the
// links in the memory is aligned too.
struct alignas(64) SharedLinks::Table {
  std::atomic<int64_t> bin_bytes;
  std::atomic<int64_t> bin_ns;  // 0: no limit
};

// One direction of one rank's link.
struct SharedLinks::Direction {
  struct Taken {
    int64_t bytes = 0;
    int64_t booked_bytes = 0;  // of the bin, with these
  };

  Taken Take(int64_t bin, int64_t wanted, int64_t bin_bytes) {
    std::atomic<uint64_t>& entry = entries[bin % kBinCount];
    uint64_t seen = entry.load(std::memory_order_relaxed);
    while (true) {
      const int64_t booked = BookedBytes(seen, bin);
      const int64_t bytes = std::min(wanted, bin_bytes - booked);
      if (bytes <= 0) {
        return {.bytes = 0, .booked_bytes = booked};
      }
      if (entry.compare_exchange_weak(
              seen, Entry(bin, booked + bytes), std::memory_order_relaxed)) {
        return {.bytes = bytes, .booked_bytes = booked + bytes};
      }
    }
  }

  void GiveBack(int64_t bin, int64_t bytes) {
    std::atomic<uint64_t>& entry = entries[bin % kBinCount];
    uint64_t seen = entry.load(std::memory_order_relaxed);
    while (bytes > 0 && IsOf(seen, bin) &&
           !entry.compare_exchange_weak(
               seen, Entry(bin, BookedBytes(seen, bin) - bytes), std::memory_order_relaxed)) {
    }
  }

  std::atomic<uint64_t> entries[kBinCount];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);

size_t SharedLinks::BytesFor(int32_t rank_count) {
  return sizeof(Table) + 2 * static_cast<size_t>(rank_count) * sizeof(Direction);
}

SharedLinks::SharedLinks(std::span<std::byte> memory, int32_t rank_count)
    : table_(reinterpret_cast<Table*>(memory.data())), rank_count_(rank_count) {
  ZP_CHECK(memory.size() >= BytesFor(rank_count)) << memory.size();
}

SharedLinks::Direction& SharedLinks::outgoing(int32_t rank) const {
  return reinterpret_cast<Direction*>(table_ + 1)[2 * static_cast<size_t>(rank)];
}

SharedLinks::Direction& SharedLinks::incoming(int32_t rank) const {
  return reinterpret_cast<Direction*>(table_ + 1)[2 * static_cast<size_t>(rank) + 1];
}

void SharedLinks::SetRate(double bytes_per_s) {
  const double ns_per_byte = 1e9 / std::max(bytes_per_s, 1.0);
  const int64_t bin_ns = std::max<int64_t>(kShortestBinNs, std::llround(kBinBytes * ns_per_byte));
  const double bin_bytes = static_cast<double>(bin_ns) / ns_per_byte;
  table_->bin_bytes = std::llround(std::clamp(bin_bytes, 1.0, static_cast<double>(kMostBinBytes)));
  table_->bin_ns = bin_ns;
}

SharedLinks::Clock::time_point SharedLinks::Book(int32_t source_rank,
                                                 int32_t target_rank,
                                                 int64_t bytes,
                                                 Clock::time_point now) {
  ZP_CHECK(source_rank != target_rank && std::max(source_rank, target_rank) < rank_count_)
      << source_rank << " " << target_rank;
  const int64_t bin_ns = table_->bin_ns;
  if (bin_ns == 0) {
    return now;
  }
  const int64_t bin_bytes = table_->bin_bytes;
  const double ns_per_byte = static_cast<double>(bin_ns) / static_cast<double>(bin_bytes);
  const auto span_of = [&](int64_t count) -> int64_t {
    return std::llround(ns_per_byte * static_cast<double>(count));
  };
  Direction& out = outgoing(source_rank);
  Direction& in = incoming(target_rank);
  const int64_t now_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(now.time_since_epoch()).count();
  const int64_t first_bin = now_ns / bin_ns;
  // Of the bin that has begun only the rest is to be had.
  int64_t room = bin_bytes - bin_bytes * (now_ns - first_bin * bin_ns) / bin_ns;
  int64_t finish_ns = now_ns + span_of(bytes);  // on free links
  int64_t rest = bytes;
  int64_t bin = first_bin;
  for (; rest > 0 && bin < first_bin + kBinCount; ++bin) {
    const Direction::Taken sent = out.Take(bin, std::min(rest, room), bin_bytes);
    const Direction::Taken received = in.Take(bin, sent.bytes, bin_bytes);
    out.GiveBack(bin, sent.bytes - received.bytes);
    rest -= received.bytes;
    room = bin_bytes;
    if (received.bytes > 0) {
      const int64_t booked = std::max(sent.booked_bytes, received.booked_bytes);
      finish_ns = std::max(finish_ns, bin * bin_ns + span_of(booked));
    }
  }
  if (rest > 0) {
    finish_ns = std::max(finish_ns, bin * bin_ns + span_of(rest));
  }
  return Clock::time_point(
      std::chrono::duration_cast<Clock::duration>(std::chrono::nanoseconds(finish_ns)));
}

}  // namespace zp::apps
