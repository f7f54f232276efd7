#include "routing/saturation.h"

#include <algorithm>

namespace zp::routing {

void Saturation::OnReport(RankSlot slot, const protocol::RankReport& report) {
  if (slot >= std::ssize(measured_)) {
    measured_.resize(slot + 1);
  }
  if (report.flops_per_s <= 0) {
    return;  // of its cache alone: no pass was measured yet
  }
  const bool is_compute_known = report.compute_flops_per_s > 0;
  Set(measured_[slot],
      {.saturation_flops = report.saturation_flops,
       .flops_per_s = report.flops_per_s,
       .compute_flops_per_s = is_compute_known ? report.compute_flops_per_s : report.flops_per_s});
}

void Saturation::Forget(RankSlot slot) {
  if (slot < std::ssize(measured_)) {
    Set(measured_[slot], {});
  }
}

void Saturation::Doubt(RankSlot slot) { SetDoubt(slot, true); }

void Saturation::Believe(RankSlot slot) { SetDoubt(slot, false); }

void Saturation::SetDoubt(RankSlot slot, bool is_doubted) {
  if (slot < std::ssize(measured_)) {
    Measured doubted = measured_[slot];
    doubted.is_doubted = is_doubted;
    Set(measured_[slot], doubted);
  }
}

void Saturation::Set(Measured& measured, const Measured& newest) {
  AddToSum(measured, -1);
  AddToSum(newest, 1);
  measured = newest;
}

void Saturation::AddToSum(const Measured& measured, int32_t times) {
  if (measured.counts()) {
    count_ += times;
    sum_.saturation_flops += times * measured.saturation_flops;
    sum_.flops_per_s += times * measured.flops_per_s;
    sum_.compute_flops_per_s += times * measured.compute_flops_per_s;
  }
}

Saturation::Measured Saturation::Of(RankSlot slot) const {
  if (slot < std::ssize(measured_) && measured_[slot].counts()) {
    return measured_[slot];
  }
  if (count_ > 0) {
    return {.saturation_flops = sum_.saturation_flops / count_,
            .flops_per_s = sum_.flops_per_s / count_,
            .compute_flops_per_s = sum_.compute_flops_per_s / count_};
  }
  return {.saturation_flops = options_.first_saturation_flops,
          .flops_per_s = options_.first_flops_per_s,
          .compute_flops_per_s = options_.first_flops_per_s};
}

double Saturation::saturation_flops(RankSlot slot) const { return Of(slot).saturation_flops; }

double Saturation::flops_per_s(RankSlot slot) const { return Of(slot).flops_per_s; }

double Saturation::compute_flops_per_s(RankSlot slot) const { return Of(slot).compute_flops_per_s; }

}  // namespace zp::routing
