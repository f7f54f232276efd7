// Outstanding work per rank: reserved when a work is placed, corrected when more is known, released
// exactly once.
//
// FLOPs are kept as whole kiloflops, so that sums are exact: whatever the order of reservations,
// corrections and releases, an idle rank stands at exactly zero.
//
// Thread safety: everything from any thread; a reader sees each account's numbers at slightly
// different moments.
// Ownership: the ledger must outlive its reservations.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>

#include "routing/rank_slot.h"

namespace zp::routing {

struct Outstanding {
  int64_t requests = 0;
  int64_t tokens = 0;  // as asked
  double flops = 0;    // still to be computed

  bool operator==(const Outstanding&) const = default;
};

class Ledger {
  struct Account {
    std::atomic<int64_t> requests = 0;
    std::atomic<int64_t> tokens = 0;
    std::atomic<int64_t> kiloflops = 0;
  };

 public:
  // What one work has reserved; gone when it is destroyed or moved from.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept { *this = std::move(other); }
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation() { Release(); }

    // From now on the work is known to need this much still. No effect once released.
    void Correct(double flops);
    // Gives all of it back; later calls do nothing.
    void Release();

    double flops() const { return static_cast<double>(kiloflops_) * kFlopsPerUnit; }
    bool is_open() const { return account_ != nullptr; }

   private:
    friend class Ledger;
    Reservation(Account& account, int64_t tokens, double flops);

    Account* account_ = nullptr;
    int64_t tokens_ = 0;
    int64_t kiloflops_ = 0;
  };

  // One work of `tokens` asked tokens; `flops` not negative.
  [[nodiscard]] Reservation Reserve(RankSlot slot, int64_t tokens, double flops);

  Outstanding outstanding(RankSlot slot) const;

 private:
  static constexpr double kFlopsPerUnit = 1000;

  std::array<Account, kMaxRanks> accounts_;
};

}  // namespace zp::routing
