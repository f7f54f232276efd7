// The MoE blocks of a rank of the wind tunnel: one engine, so one set of activations, whose experts
// are held, gathered or dispatched to by turns.
//
// Thread safety: engine thread only.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/check.h"
#include "model/moe_block.h"

namespace zp::apps {

class TunnelMoes final : public model::MoeBlock {
 public:
  void Add(const std::string& strategy, std::unique_ptr<model::MoeBlock> block) {
    blocks_[strategy] = std::move(block);
  }
  // What passes go through from here on; null if there is no such strategy.
  model::MoeBlock* Choose(const std::string& strategy) {
    const auto found = blocks_.find(strategy);
    chosen_ = found == blocks_.end() ? nullptr : found->second.get();
    return chosen_;
  }

  void BeginLayer(int32_t layer) override { chosen().BeginLayer(layer); }
  absl::Status EndLayer(int32_t layer, model::PassProfile& profile) override {
    return chosen().EndLayer(layer, profile);
  }
  absl::Status Run(int32_t layer,
                   ops::ConstMatrix x,
                   const ops::Routing& routing,
                   ops::Matrix residual,
                   model::PassProfile& profile) override {
    return chosen().Run(layer, x, routing, residual, profile);
  }

 private:
  model::MoeBlock& chosen() const {
    ZP_CHECK(chosen_ != nullptr) << "no strategy is chosen";
    return *chosen_;
  }

  std::map<std::string, std::unique_ptr<model::MoeBlock>> blocks_;
  model::MoeBlock* chosen_ = nullptr;
};

}  // namespace zp::apps
