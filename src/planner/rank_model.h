// What a rank of a machine that is not here would take for a pass: the physics of docs/physics.md,
// for replays in virtual time.
//
// Thread safety: values and pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "spec/model_spec.h"

namespace zp::planner {

// A kind of machine, by name.
struct MachineModel {
  std::string name;
  double flops_per_s = 0;       // achieved: u * F
  double link_bytes_per_s = 0;  // into a rank, achieved
  int32_t ranks_per_group = 8;  // that share one copy of the experts
  double element_bytes = 2;     // of a weight
  double pass_seconds = 0.004;  // of any pass, whatever is in it: launches, forming, answers
  int64_t cache_bytes = 0;      // of a rank's prefix cache
};

// "h100-nvlink": one of eight H100 joined by NVLink 4, 45 % of 989 TFLOP/s, 360 GB/s.
// "h100-pcie5": the same over PCIe 5 peer to peer, 50 GB/s. InvalidArgument for another name.
absl::StatusOr<MachineModel> FindMachine(const std::string& name);

class RankModel {
 public:
  // `rank_count`: fewer than a group keep more of the experts each.
  RankModel(const spec::ModelSpec& spec, const MachineModel& machine, int32_t rank_count);

  double flops_per_s() const { return machine_.flops_per_s; }
  // Of one layer's missing experts.
  double gather_seconds() const { return gather_seconds_; }
  // True FLOPs of a pass, all layers, at which compute covers the gathers: T* without margin.
  double saturation_flops() const;
  // The same in tokens whose context costs nothing.
  double saturation_tokens() const { return saturation_flops() / token_flops_; }
  // A pass of `flops`; every layer takes its compute or its gather, whichever lasts longer.
  double PassSeconds(double flops) const;
  // What no policy can beat: `rank_count` ranks share `distinct_flops` evenly and wait for nothing,
  // and each of `request_count` requests, of which so many are in flight (0: any number), is in one
  // pass at least.
  double LeastSeconds(int32_t rank_count,
                      double distinct_flops,
                      int64_t request_count,
                      int32_t requests_in_flight) const;
  // Compute stood still for so much of it.
  double ExposedWaitSeconds(double flops) const;

 private:
  const MachineModel machine_;
  const int32_t layer_count_;
  const double token_flops_;
  double gather_seconds_ = 0;
};

}  // namespace zp::planner
