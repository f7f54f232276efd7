// What is known of a model without its weights: shapes and constants.
//
// Everything that counts FLOPs or bytes (flops.h), lays out weights or checks a request's length
// starts from this struct.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "spec/dtype.h"

namespace zp::spec {

using TokenId = int32_t;

struct ModelSpec {
  std::string family;  // Hugging Face `model_type`, e.g. "qwen3_moe"

  int32_t layer_count = 0;
  int32_t model_dim = 0;  // h
  int32_t vocab_count = 0;
  int32_t max_position_count = 0;  // longest sequence in tokens

  int32_t query_head_count = 0;  // n_q
  int32_t kv_head_count = 0;     // n_kv; divides query_head_count
  int32_t head_dim = 0;          // d; need not be model_dim / query_head_count
  bool has_qk_norm = false;
  double rope_theta = 10000.0;

  int32_t expert_count = 0;        // E
  int32_t experts_per_token = 0;   // k
  int32_t expert_dim = 0;          // I
  bool normalize_top_k = false;    // routing weights of a token sum to 1
  int32_t dense_ffn_dim = 0;       // inner width of the layers without experts
  std::vector<bool> layer_is_moe;  // [layer_count]

  float rms_epsilon = 1e-6f;
  bool tied_embeddings = false;
  DType weight_dtype = DType::kBf16;

  int32_t query_dim() const { return query_head_count * head_dim; }
  int32_t kv_dim() const { return kv_head_count * head_dim; }
};

}  // namespace zp::spec
