// How fast a rank is, learnt from its passes: what its reports and its advice to come again rest
// on.
//
// Thread safety: none.
#pragma once

#include "engine/engine.h"
#include "protocol/rank_report.h"

namespace zp::scheduler {

// The compute that hides the gather of a next bank (T*), as a whole pass.
struct Saturation {
  double flops = 0;  // 0: nothing is gathered
  double tokens = 0;
};

class RankSpeed {
 public:
  // `first_flops_per_s` is assumed until a pass was measured.
  explicit RankSpeed(double first_flops_per_s) : first_flops_per_s_(first_flops_per_s) {}

  // `asked_flops`: what its works would have cost alone; `seconds`: of the pass.
  void Learn(const engine::PassReport& report, double asked_flops, double seconds);

  // True FLOPs a second; 0: not measured yet.
  double flops_per_s() const { return flops_.per_second(); }
  // The same while it computes, without what passes wait for weights: what a router compares, to
  // which a rank with little to do would else look slow and be given less still.
  double compute_flops_per_s() const { return compute_flops_.per_second(); }
  const Saturation& saturation() const { return saturation_; }
  // How long works take that cost this much alone, if passes share and hold as much of them as
  // lately.
  double SecondsFor(double asked_flops) const;

 private:
  // A moving average over passes, each weighing as much as it lasted.
  class MovingRate {
   public:
    void Add(double amount, double seconds);
    double per_second() const { return seconds_ > 0 ? amount_ / seconds_ : 0; }

   private:
    double amount_ = 0;
    double seconds_ = 0;
  };

  const double first_flops_per_s_;
  MovingRate flops_;
  MovingRate compute_flops_;
  MovingRate asked_flops_;
  Saturation saturation_;
};

}  // namespace zp::scheduler
