// The seam at which a layer's routed experts are applied. The forward pass does not know whether
// the weights come to the tokens (gathered_moe.h) or the tokens go to the weights.
//
// Thread safety: engine thread only.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "model/pass_profile.h"
#include "ops/kernels.h"

namespace zp::model {

class MoeBlock {
 public:
  virtual ~MoeBlock() = default;

  // Around the chunks of each layer with experts, in the order of the layers.
  virtual void BeginLayer(int32_t layer) = 0;
  virtual absl::Status EndLayer(int32_t layer, PassProfile& profile) = 0;

  // residual += the weighted outputs of each row's experts, at the latest when EndLayer returns:
  // until then `residual` is lent; `x` and `routing` are for the call. Called once per chunk of the
  // layer. x [rows, model_dim] activation_dtype; residual [rows, model_dim] f32. An error ends the
  // pass; the next one begins afresh.
  virtual absl::Status Run(int32_t layer,
                           ops::ConstMatrix x,
                           const ops::Routing& routing,
                           ops::Matrix residual,
                           PassProfile& profile) = 0;
};

}  // namespace zp::model
