#include "planner/rank_model.h"

#include <algorithm>

#include "fmt/format.h"
#include "spec/flops.h"

namespace zp::planner {

absl::StatusOr<MachineModel> FindMachine(const std::string& name) {
  MachineModel machine = {.name = name,
                          .flops_per_s = 0.45 * 989e12,
                          .link_bytes_per_s = 360e9,
                          .cache_bytes = int64_t{32} << 30};
  if (name == "h100-pcie5") {
    machine.link_bytes_per_s = 50e9;
  } else if (name != "h100-nvlink") {
    return absl::InvalidArgumentError(
        fmt::format("'{}' is no machine; there are h100-nvlink and h100-pcie5", name));
  }
  return machine;
}

RankModel::RankModel(const spec::ModelSpec& spec, const MachineModel& machine, int32_t rank_count)
    : machine_(machine),
      layer_count_(spec.layer_count),
      token_flops_(spec::PassFlops(spec, {.token_count = 1})) {
  const double shares = std::min(rank_count, machine.ranks_per_group);
  const double bank_bytes = static_cast<double>(spec.expert_count) *
                            static_cast<double>(spec::ExpertParameters(spec)) *
                            machine.element_bytes;
  gather_seconds_ = bank_bytes * (1 - 1 / shares) / machine.link_bytes_per_s;
}

double RankModel::saturation_flops() const {
  return gather_seconds_ * machine_.flops_per_s * layer_count_;
}

double RankModel::PassSeconds(double flops) const {
  return machine_.pass_seconds +
         std::max(flops / machine_.flops_per_s, gather_seconds_ * layer_count_);
}

double RankModel::LeastSeconds(int32_t rank_count,
                               double distinct_flops,
                               int64_t request_count,
                               int32_t requests_in_flight) const {
  const double turns = requests_in_flight > 0 ? static_cast<double>(request_count) /
                                                    static_cast<double>(requests_in_flight)
                                              : 1;
  return std::max(distinct_flops / machine_.flops_per_s / rank_count, turns * PassSeconds(0));
}

double RankModel::ExposedWaitSeconds(double flops) const {
  return std::max(0.0, gather_seconds_ * layer_count_ - flops / machine_.flops_per_s);
}

}  // namespace zp::planner
