// A model for tests, odd on purpose: no size is a multiple of a vector.
#pragma once

#include <utility>
#include <vector>

#include "spec/model_spec.h"

namespace zp::engine {

inline spec::ModelSpec OddSpec(std::vector<bool> layer_is_moe, bool tied_embeddings = false) {
  spec::ModelSpec spec;
  spec.family = "qwen3_moe";
  spec.layer_count = static_cast<int32_t>(layer_is_moe.size());
  spec.model_dim = 72;
  spec.vocab_count = 301;
  spec.max_position_count = 4096;
  spec.query_head_count = 7;
  spec.kv_head_count = 1;
  spec.head_dim = 24;
  spec.has_qk_norm = true;
  spec.rope_theta = 1e6;
  spec.expert_count = 13;
  spec.experts_per_token = 3;
  spec.expert_dim = 40;
  spec.normalize_top_k = true;
  spec.dense_ffn_dim = 100;
  spec.layer_is_moe = std::move(layer_is_moe);
  spec.tied_embeddings = tied_embeddings;
  return spec;
}

}  // namespace zp::engine
