#include "scheduler/rank_speed.h"

#include <algorithm>
#include <optional>

namespace zp::scheduler {
namespace {

// Weight of the newest pass: a change of load shows after a few passes.
constexpr double kGain = 0.3;

std::optional<Saturation> SaturationOf(const engine::PassReport& report) {
  double compute_seconds = 0;
  double gather_seconds = 0;
  // The last layer runs only the rows that were asked: it tells nothing of a token's cost.
  for (size_t index = 0; index + 1 < report.layers.size(); ++index) {
    const engine::LayerReport& layer = report.layers[index];
    if (layer.gathered_bytes > 0) {
      compute_seconds += layer.compute_seconds;
      gather_seconds += layer.gather_seconds;
    }
  }
  if (compute_seconds <= 0) {
    return std::nullopt;
  }
  const double passes = gather_seconds / compute_seconds;
  return Saturation{.flops = report.flops * passes,
                    .tokens = static_cast<double>(report.computed_tokens) * passes};
}

}  // namespace

void RankSpeed::MovingRate::Add(double amount, double seconds) {
  const double kept = seconds_ > 0 ? 1 - kGain : 0;
  amount_ = kept * amount_ + amount;
  seconds_ = kept * seconds_ + seconds;
}

void RankSpeed::Learn(const engine::PassReport& report, double asked_flops, double seconds) {
  const double measured_seconds = std::max(seconds, 1e-9);
  flops_.Add(report.flops, measured_seconds);
  compute_flops_.Add(report.flops, std::max(seconds - report.exposed_wait_seconds, 1e-9));
  asked_flops_.Add(asked_flops, measured_seconds);
  if (const std::optional<Saturation> newest = SaturationOf(report); newest.has_value()) {
    const double gain = saturation_.tokens > 0 ? kGain : 1;
    saturation_.flops += gain * (newest->flops - saturation_.flops);
    saturation_.tokens += gain * (newest->tokens - saturation_.tokens);
  }
}

double RankSpeed::SecondsFor(double asked_flops) const {
  const double measured = asked_flops_.per_second();
  return asked_flops / (measured > 0 ? measured : first_flops_per_s_);
}

}  // namespace zp::scheduler
