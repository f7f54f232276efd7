#include "routing/ledger.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace zp::routing {
namespace {

// Of one work: ten thousand of them are still a sum that 64 bits hold.
constexpr double kMaxKiloflops = 9e14;

// What is not a number or below zero counts as nothing.
int64_t WholeKiloflops(double kiloflops) {
  return kiloflops > 0 ? std::llround(std::min(kiloflops, kMaxKiloflops)) : 0;
}

}  // namespace

Ledger::Reservation::Reservation(Account& account, int64_t tokens, double flops)
    : account_(&account), tokens_(tokens), kiloflops_(WholeKiloflops(flops / kFlopsPerUnit)) {
  account_->requests += 1;
  account_->tokens += tokens_;
  account_->kiloflops += kiloflops_;
}

Ledger::Reservation& Ledger::Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    account_ = std::exchange(other.account_, nullptr);
    tokens_ = std::exchange(other.tokens_, 0);
    kiloflops_ = std::exchange(other.kiloflops_, 0);
  }
  return *this;
}

void Ledger::Reservation::Correct(double flops) {
  if (account_ != nullptr) {
    const int64_t kiloflops = WholeKiloflops(flops / kFlopsPerUnit);
    account_->kiloflops += kiloflops - kiloflops_;
    kiloflops_ = kiloflops;
  }
}

void Ledger::Reservation::Release() {
  if (account_ != nullptr) {
    account_->tokens -= tokens_;
    account_->kiloflops -= kiloflops_;
    account_->requests -= 1;  // last: without requests the slot may go to another rank
    account_ = nullptr;
    tokens_ = kiloflops_ = 0;
  }
}

Ledger::Reservation Ledger::Reserve(RankSlot slot, int64_t tokens, double flops) {
  ZP_CHECK(slot >= 0 && slot < kMaxRanks && flops >= 0) << slot << " " << flops;
  return Reservation(accounts_[slot], tokens, flops);
}

Outstanding Ledger::outstanding(RankSlot slot) const {
  const Account& account = accounts_[slot];
  return {.requests = account.requests,
          .tokens = account.tokens,
          .flops = static_cast<double>(account.kiloflops) * kFlopsPerUnit};
}

}  // namespace zp::routing
