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
  Measured& measured = measured_[slot];
  measured.has_saturation = true;
  measured.saturation_flops = report.saturation_flops;
  measured.compute_flops_per_s = report.compute_flops_per_s;
  SetSpeed(measured, report.flops_per_s);
}

void Saturation::Forget(RankSlot slot) {
  if (slot < std::ssize(measured_)) {
    SetSpeed(measured_[slot], 0);
    measured_[slot] = {};
  }
}

void Saturation::SetSpeed(Measured& measured, double flops_per_s) {
  speed_sum_ += flops_per_s - measured.flops_per_s;
  speed_count_ += (flops_per_s > 0 ? 1 : 0) - (measured.flops_per_s > 0 ? 1 : 0);
  measured.flops_per_s = flops_per_s;
}

double Saturation::saturation_flops(RankSlot slot) const {
  const bool is_known = slot < std::ssize(measured_) && measured_[slot].has_saturation;
  return is_known ? measured_[slot].saturation_flops : options_.first_saturation_flops;
}

double Saturation::flops_per_s(RankSlot slot) const {
  if (slot < std::ssize(measured_) && measured_[slot].flops_per_s > 0) {
    return measured_[slot].flops_per_s;
  }
  return speed_count_ > 0 ? speed_sum_ / speed_count_ : options_.first_flops_per_s;
}

double Saturation::compute_flops_per_s(RankSlot slot) const {
  const bool is_known = slot < std::ssize(measured_) && measured_[slot].compute_flops_per_s > 0;
  return is_known ? measured_[slot].compute_flops_per_s : flops_per_s(slot);
}

}  // namespace zp::routing
