// Experts that come to the tokens: the bank of each layer out of a window that fills itself ahead
// of the compute.
//
// The window holds the bank in use and those of the next layers, and goes on round from the last
// layer to the first: a pass ends with the banks of the next one on their way.
//
// Thread safety: engine thread only. Ownership: the provider and the kernels must outlive it.
#pragma once

#include <deque>
#include <vector>

#include "experts/expert_provider.h"
#include "model/moe_block.h"

namespace zp::model {

class GatheredMoe final : public MoeBlock {
 public:
  GatheredMoe(std::vector<bool> layer_is_moe,
              const ops::ExpertLayout& layout,
              experts::ExpertProvider& experts,
              ops::Kernels& kernels);

  void BeginLayer(int32_t layer) override;
  absl::Status EndLayer(int32_t layer, PassProfile& profile) override;
  absl::Status Run(int32_t layer,
                   ops::ConstMatrix x,
                   const ops::Routing& routing,
                   ops::Matrix residual,
                   PassProfile& profile) override;

  // Returns when nothing is on its way any more: the first layers of the next pass are there. For
  // benchmarks, in which one engine's gather must not run into what is measured next.
  absl::Status AwaitWindow();

 private:
  int32_t NextMoeLayer(int32_t layer) const;

  const std::vector<bool> layer_is_moe_;
  const ops::ExpertLayout layout_;
  experts::ExpertProvider& experts_;
  ops::Kernels& kernels_;
  std::deque<experts::GatherTicket> window_;  // in the order of their layers
};

}  // namespace zp::model
