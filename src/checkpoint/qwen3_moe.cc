#include "checkpoint/qwen3_moe.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "boost/json/array.hpp"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxFfnDim = 1 << 20;

// The field has two names: transformers 5 writes num_local_experts.
absl::StatusOr<int32_t> ReadExpertCount(const JsonFile& config) {
  const char* field = config.Has("num_local_experts") ? "num_local_experts" : "num_experts";
  ZP_ASSIGN_OR_RETURN(const int64_t count, config.Integer(field, 1, kMaxExperts));
  ZP_ASSIGN_OR_RETURN(const int64_t other, config.Integer("num_experts", 1, kMaxExperts, count));
  if (other != count) {
    return config.Wrong("num_experts",
                        fmt::format("is {}, but num_local_experts is {}", other, count));
  }
  return count;
}

// A layer has experts unless it is listed in mlp_only_layers or its number, counted from 1, is no
// multiple of decoder_sparse_step.
absl::StatusOr<std::vector<bool>> ReadLayerKinds(const JsonFile& config, int32_t layer_count) {
  ZP_ASSIGN_OR_RETURN(const int64_t step, config.Integer("decoder_sparse_step", 1, layer_count, 1));
  ZP_ASSIGN_OR_RETURN(const std::vector<int64_t> dense_layers,
                      config.Integers("mlp_only_layers", 0, layer_count - 1));
  std::vector<bool> layer_is_moe(layer_count);
  for (int32_t layer = 0; layer < layer_count; ++layer) {
    layer_is_moe[layer] = (layer + 1) % step == 0;
  }
  for (const int64_t layer : dense_layers) {
    layer_is_moe[layer] = false;
  }
  return layer_is_moe;
}

absl::StatusOr<spec::ModelSpec> ReadSpec(const JsonFile& config) {
  ZP_ASSIGN_OR_RETURN(spec::ModelSpec spec, ReadCommonSpec(config));
  spec.has_qk_norm = true;
  ZP_ASSIGN_OR_RETURN(spec.expert_count, ReadExpertCount(config));
  ZP_ASSIGN_OR_RETURN(spec.experts_per_token,
                      config.Integer("num_experts_per_tok", 1, spec.expert_count));
  ZP_ASSIGN_OR_RETURN(spec.expert_dim, config.Integer("moe_intermediate_size", 1, kMaxFfnDim));
  ZP_ASSIGN_OR_RETURN(spec.normalize_top_k, config.Bool("norm_topk_prob", false));
  ZP_ASSIGN_OR_RETURN(spec.layer_is_moe, ReadLayerKinds(config, spec.layer_count));
  const bool all_moe =
      std::all_of(spec.layer_is_moe.begin(), spec.layer_is_moe.end(), [](bool moe) { return moe; });
  const auto fallback = all_moe ? std::optional<int64_t>(0) : std::nullopt;
  ZP_ASSIGN_OR_RETURN(spec.dense_ffn_dim,
                      config.Integer("intermediate_size", 1, kMaxFfnDim, fallback));
  return spec;
}

// 1e-6f as 1e-06, not as 9.999999974752427e-07.
double ShortestDouble(float value) { return std::stod(fmt::format("{}", value)); }

boost::json::object ConfigOf(const spec::ModelSpec& spec) {
  boost::json::array dense_layers;
  for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
    if (!spec.layer_is_moe[layer]) {
      dense_layers.push_back(layer);
    }
  }
  const char* dtype = spec.weight_dtype == spec::DType::kBf16  ? "bfloat16"
                      : spec.weight_dtype == spec::DType::kF16 ? "float16"
                                                               : "float32";
  return {{"architectures", {"Qwen3MoeForCausalLM"}},
          {"model_type", "qwen3_moe"},
          {"torch_dtype", dtype},
          {"attention_bias", false},
          {"attention_dropout", 0.0},
          {"decoder_sparse_step", 1},
          {"head_dim", spec.head_dim},
          {"hidden_act", "silu"},
          {"hidden_size", spec.model_dim},
          {"intermediate_size", std::max(spec.dense_ffn_dim, 1)},
          {"max_position_embeddings", spec.max_position_count},
          {"mlp_only_layers", dense_layers},
          {"moe_intermediate_size", spec.expert_dim},
          {"norm_topk_prob", spec.normalize_top_k},
          {"num_attention_heads", spec.query_head_count},
          {"num_experts", spec.expert_count},
          {"num_experts_per_tok", spec.experts_per_token},
          {"num_hidden_layers", spec.layer_count},
          {"num_key_value_heads", spec.kv_head_count},
          {"rms_norm_eps", ShortestDouble(spec.rms_epsilon)},
          {"rope_theta", spec.rope_theta},
          {"tie_word_embeddings", spec.tied_embeddings},
          {"use_sliding_window", false},
          {"vocab_size", spec.vocab_count}};
}

const char* LayerTensorName(TensorRole role) {
  switch (role) {
    case TensorRole::kAttentionNorm:
      return "input_layernorm.weight";
    case TensorRole::kQuery:
      return "self_attn.q_proj.weight";
    case TensorRole::kKey:
      return "self_attn.k_proj.weight";
    case TensorRole::kValue:
      return "self_attn.v_proj.weight";
    case TensorRole::kQueryNorm:
      return "self_attn.q_norm.weight";
    case TensorRole::kKeyNorm:
      return "self_attn.k_norm.weight";
    case TensorRole::kAttentionOut:
      return "self_attn.o_proj.weight";
    case TensorRole::kFfnNorm:
      return "post_attention_layernorm.weight";
    case TensorRole::kRouter:
      return "mlp.gate.weight";
    case TensorRole::kExpertGate:
    case TensorRole::kDenseGate:
      return "gate_proj.weight";
    case TensorRole::kExpertUp:
    case TensorRole::kDenseUp:
      return "up_proj.weight";
    case TensorRole::kExpertDown:
    case TensorRole::kDenseDown:
      return "down_proj.weight";
    default:
      ZP_CHECK(false) << "role " << static_cast<int>(role) << " belongs to no layer";
      return "";
  }
}

std::string TensorName(const TensorKey& key) {
  switch (key.role) {
    case TensorRole::kEmbedding:
      return "model.embed_tokens.weight";
    case TensorRole::kFinalNorm:
      return "model.norm.weight";
    case TensorRole::kOutputHead:
      return "lm_head.weight";
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kExpertDown:
      return fmt::format(
          "model.layers.{}.mlp.experts.{}.{}", key.layer, key.expert, LayerTensorName(key.role));
    case TensorRole::kDenseGate:
    case TensorRole::kDenseUp:
    case TensorRole::kDenseDown:
      return fmt::format("model.layers.{}.mlp.{}", key.layer, LayerTensorName(key.role));
    default:
      return fmt::format("model.layers.{}.{}", key.layer, LayerTensorName(key.role));
  }
}

// transformers 5 keeps a layer's experts as gate_up_proj [E, 2 I, h] (gate above up) and down_proj
// [E, h, I]; it writes them so on request only, and per expert otherwise.
TensorSource FusedSource(const spec::ModelSpec& spec, const TensorKey& key) {
  TensorSource source;
  source.fused = true;
  const bool is_down = key.role == TensorRole::kExpertDown;
  source.name = fmt::format(
      "model.layers.{}.mlp.experts.{}", key.layer, is_down ? "down_proj" : "gate_up_proj");
  source.first_row = key.role == TensorRole::kExpertUp ? spec.expert_dim : 0;
  source.fused_rows = is_down ? spec.model_dim : 2 * int64_t{spec.expert_dim};
  return source;
}

bool IsRedundant(std::string_view tensor_name) {
  return tensor_name.ends_with(".rotary_emb.inv_freq");
}

}  // namespace

constinit const ModelFamily kQwen3Moe = {
    .model_type = "qwen3_moe",
    .architecture = "Qwen3MoeForCausalLM",
    .read_spec = ReadSpec,
    .config_of = ConfigOf,
    .tensor_name = TensorName,
    .fused_source = FusedSource,
    .is_redundant = IsRedundant,
};

}  // namespace zp::checkpoint
