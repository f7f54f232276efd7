#include "spec/flops.h"

namespace zp::spec {
namespace {

constexpr double kFlopsPerMultiplyAdd = 2;
constexpr int64_t kFfnMatrices = 3;  // gate, up, down

}  // namespace

double QueryOutputFlops(const ModelSpec& spec) {
  return kFlopsPerMultiplyAdd * 2.0 * spec.model_dim * spec.query_dim();
}

double KeyValueFlops(const ModelSpec& spec) {
  return kFlopsPerMultiplyAdd * 2.0 * spec.model_dim * spec.kv_dim();
}

double FfnFlops(const ModelSpec& spec, int32_t layer) {
  const double model_dim = spec.model_dim;
  if (!spec.layer_is_moe[layer]) {
    return kFlopsPerMultiplyAdd * kFfnMatrices * model_dim * spec.dense_ffn_dim;
  }
  const double router = kFlopsPerMultiplyAdd * model_dim * spec.expert_count;
  const double expert = kFlopsPerMultiplyAdd * kFfnMatrices * model_dim * spec.expert_dim;
  return router + spec.experts_per_token * expert;
}

double AttentionFlops(const ModelSpec& spec, int64_t query_count, int64_t context_count) {
  const double queries = static_cast<double>(query_count);
  const double context = static_cast<double>(context_count);
  // Query i sees the context and i + 1 of its own tokens; each pair costs q.k and weight*v.
  const double pairs = queries * context + queries * (queries + 1) / 2;
  return kFlopsPerMultiplyAdd * 2 * spec.query_dim() * pairs;
}

double LogitFlops(const ModelSpec& spec, int64_t column_count) {
  return kFlopsPerMultiplyAdd * spec.model_dim * static_cast<double>(column_count);
}

double PassFlops(const ModelSpec& spec, const PassShape& shape) {
  const double tokens = static_cast<double>(shape.token_count);
  const double asked_tokens = static_cast<double>(shape.asked_token_count);
  const int32_t last_layer = spec.layer_count - 1;
  double flops = 0;
  for (int32_t layer = 0; layer < last_layer; ++layer) {
    flops += tokens * (QueryOutputFlops(spec) + KeyValueFlops(spec) + FfnFlops(spec, layer));
    flops += shape.attention_flops;
  }
  flops += tokens * KeyValueFlops(spec);
  flops += asked_tokens * (QueryOutputFlops(spec) + FfnFlops(spec, last_layer));
  flops += shape.asked_attention_flops;
  flops += static_cast<double>(shape.full_vocabulary_rows) * LogitFlops(spec, spec.vocab_count);
  flops += LogitFlops(spec, shape.label_columns);
  return flops;
}

int64_t ExpertParameters(const ModelSpec& spec) {
  return kFfnMatrices * spec.model_dim * spec.expert_dim;
}

int64_t LayerDenseParameters(const ModelSpec& spec, int32_t layer) {
  const int64_t model_dim = spec.model_dim;
  const int64_t projections = 2 * model_dim * (spec.query_dim() + spec.kv_dim());
  const int64_t norms = 2 * model_dim + (spec.has_qk_norm ? 2 * int64_t{spec.head_dim} : 0);
  const int64_t ffn = spec.layer_is_moe[layer] ? model_dim * spec.expert_count
                                               : kFfnMatrices * model_dim * spec.dense_ffn_dim;
  return projections + norms + ffn;
}

namespace {

// All layers, `experts_per_layer` experts in each layer that has experts.
int64_t LayerParameters(const ModelSpec& spec, int64_t experts_per_layer) {
  int64_t parameters = 0;
  for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
    parameters += LayerDenseParameters(spec, layer);
    if (spec.layer_is_moe[layer]) {
      parameters += experts_per_layer * ExpertParameters(spec);
    }
  }
  return parameters;
}

int64_t VocabularyParameters(const ModelSpec& spec) {
  return int64_t{spec.vocab_count} * spec.model_dim;
}

}  // namespace

int64_t TotalParameters(const ModelSpec& spec) {
  const int64_t vocabulary_matrices = spec.tied_embeddings ? 1 : 2;
  return LayerParameters(spec, spec.expert_count) + spec.model_dim +
         vocabulary_matrices * VocabularyParameters(spec);
}

int64_t ActiveParameters(const ModelSpec& spec) {
  return LayerParameters(spec, spec.experts_per_token) + spec.model_dim +
         VocabularyParameters(spec);
}

int64_t KvBytesPerToken(const ModelSpec& spec, DType dtype) {
  return int64_t{spec.layer_count} * 2 * spec.kv_dim() * static_cast<int64_t>(SizeOf(dtype));
}

}  // namespace zp::spec
