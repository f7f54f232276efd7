// How fast each rank is and from how much work on it is saturated (T*), as the ranks report it.
//
// Thread safety: none; the owner (RequestRouter) guards it.
#pragma once

#include <vector>

#include "protocol/rank_report.h"
#include "routing/rank_slot.h"

namespace zp::routing {

struct SaturationOptions {
  // Of a rank that has not reported yet; 0: not known, and nothing is refused for want of time.
  double first_saturation_flops = 0;
  double first_flops_per_s = 0;
};

class Saturation {
 public:
  explicit Saturation(const SaturationOptions& options) : options_(options) {}

  void OnReport(RankSlot slot, const protocol::RankReport& report);
  // Another rank has the slot: nothing is known of it.
  void Forget(RankSlot slot);
  // The rank's measurement is old: until it is believed again, or the next one comes, the rank
  // counts as one without.
  void Doubt(RankSlot slot);
  void Believe(RankSlot slot);

  // Of a rank without a measurement all three are what the others have on average, else the
  // configured; 0: not known.

  // T* in true FLOPs of a pass; 0 where nothing is gathered.
  double saturation_flops(RankSlot slot) const;
  // While passes run.
  double flops_per_s(RankSlot slot) const;
  // While it computes, without what it waits for weights: else a rank with little to do would look
  // slow and be given less still.
  double compute_flops_per_s(RankSlot slot) const;

 private:
  struct Measured {
    double saturation_flops = 0;
    double flops_per_s = 0;  // 0: not measured
    double compute_flops_per_s = 0;
    bool is_doubted = false;

    bool counts() const { return flops_per_s > 0 && !is_doubted; }
  };
  void Set(Measured& measured, const Measured& newest);
  void SetDoubt(RankSlot slot, bool is_doubted);
  void AddToSum(const Measured& measured, int32_t times);
  Measured Of(RankSlot slot) const;

  const SaturationOptions options_;
  std::vector<Measured> measured_;  // by slot
  Measured sum_;                    // of those that count
  int32_t count_ = 0;
};

}  // namespace zp::routing
