#include "model/rope_cache.h"

#include <cmath>

namespace zp::model {

RopeCache::RopeCache(int32_t head_dim, double theta) : half_dim_(head_dim / 2) {
  for (int32_t i = 0; i < half_dim_; ++i) {
    const auto exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    inverse_frequencies_.push_back(1.0f / std::pow(static_cast<float>(theta), exponent));
  }
}

ops::RopeTable RopeCache::Table(int64_t position_count) {
  for (auto position = static_cast<int64_t>(cos_.size()) / half_dim_; position < position_count;
       ++position) {
    for (const float frequency : inverse_frequencies_) {
      const float angle = static_cast<float>(position) * frequency;
      cos_.push_back(std::cos(angle));
      sin_.push_back(std::sin(angle));
    }
  }
  return {cos_, sin_, half_dim_};
}

}  // namespace zp::model
