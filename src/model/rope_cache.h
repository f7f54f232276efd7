// Cosines and sines of rotary embedding, computed once per position and kept.
//
// Angles as Hugging Face transformers computes them: inverse frequencies theta^(-2i/d) in f32,
// times the position in f32. Thread safety: engine thread only.
#pragma once

#include <vector>

#include "ops/kernels.h"

namespace zp::model {

class RopeCache {
 public:
  RopeCache(int32_t head_dim, double theta);

  // Covers positions 0 .. position_count - 1 at least. Valid until the next call.
  ops::RopeTable Table(int64_t position_count);

 private:
  const int32_t half_dim_;
  std::vector<float> inverse_frequencies_;  // [half_dim]
  std::vector<float> cos_;
  std::vector<float> sin_;
};

}  // namespace zp::model
