// What there is to place and to gather: so many experts in some layers, each a blob of so many
// bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace zp::experts {

using LayerIndex = int32_t;

struct ExpertCatalog {
  std::vector<bool> layer_has_experts;  // [layer_count]
  int32_t expert_count = 0;             // of a layer that has any
  size_t expert_bytes = 0;              // of one expert; a multiple of 4096

  LayerIndex layer_count() const { return static_cast<LayerIndex>(layer_has_experts.size()); }
  int32_t expert_count_of(LayerIndex layer) const {
    return layer_has_experts[layer] ? expert_count : 0;
  }
  int32_t moe_layer_count() const {
    int32_t count = 0;
    for (const bool has_experts : layer_has_experts) {
      count += has_experts ? 1 : 0;
    }
    return count;
  }
  size_t total_bytes() const {
    return static_cast<size_t>(moe_layer_count()) * expert_count * expert_bytes;
  }
};

}  // namespace zp::experts
