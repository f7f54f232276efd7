#include "checkpoint/model_family.h"

#include <array>

#include "checkpoint/fp8.h"
#include "checkpoint/qwen3_moe.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

// Limits well above any published model; they keep every product of shapes within 64 bits.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxModelDim = 1 << 17;
constexpr int64_t kMaxVocabulary = 1 << 22;
constexpr int64_t kMaxPositions = 1 << 24;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;

// Old files say {"type": ...} in rope_scaling, new ones {"rope_type": ...} in rope_parameters.
absl::Status CheckPlainRope(const JsonFile& config, std::string_view field) {
  ZP_ASSIGN_OR_RETURN(const JsonFile rope, config.Object(field));
  for (const char* key : {"rope_type", "type"}) {
    ZP_ASSIGN_OR_RETURN(const std::string type, rope.String(key, "default"));
    if (type != "default") {
      return rope.Unsupported(key, fmt::format("is '{}', but only 'default' is supported", type));
    }
  }
  ZP_ASSIGN_OR_RETURN(const double rotated, rope.Positive("partial_rotary_factor", 1.0));
  if (rotated != 1.0) {
    return rope.Unsupported("partial_rotary_factor",
                            fmt::format("is {}, but only 1 is supported", rotated));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> ReadRopeTheta(const JsonFile& config) {
  ZP_RETURN_IF_ERROR(CheckPlainRope(config, "rope_scaling"));
  ZP_RETURN_IF_ERROR(CheckPlainRope(config, "rope_parameters"));
  ZP_ASSIGN_OR_RETURN(const double theta, config.Positive("rope_theta", 10000.0));
  ZP_ASSIGN_OR_RETURN(const JsonFile rope, config.Object("rope_parameters"));
  return rope.Positive("rope_theta", theta);
}

absl::StatusOr<spec::DType> ReadDType(const JsonFile& config) {
  const char* field = config.Has("dtype") ? "dtype" : "torch_dtype";
  ZP_ASSIGN_OR_RETURN(const std::string name, config.String(field, "float32"));
  if (name == "bfloat16") {
    return spec::DType::kBf16;
  }
  if (name == "float16") {
    return spec::DType::kF16;
  }
  if (name == "float32") {
    return spec::DType::kF32;
  }
  return config.Unsupported(
      field, fmt::format("is '{}', but only bfloat16, float16 and float32 are supported", name));
}

absl::Status ReadAttentionShape(const JsonFile& config, spec::ModelSpec& spec) {
  ZP_ASSIGN_OR_RETURN(spec.query_head_count, config.Integer("num_attention_heads", 1, kMaxHeads));
  ZP_ASSIGN_OR_RETURN(spec.kv_head_count,
                      config.Integer("num_key_value_heads", 1, spec.query_head_count));
  if (spec.query_head_count % spec.kv_head_count != 0) {
    return config.Wrong("num_key_value_heads",
                        fmt::format("is {}, which does not divide the {} of num_attention_heads",
                                    spec.kv_head_count,
                                    spec.query_head_count));
  }
  ZP_ASSIGN_OR_RETURN(
      spec.head_dim,
      config.Integer("head_dim", 2, kMaxHeadDim, spec.model_dim / spec.query_head_count));
  if (spec.head_dim < 2 || spec.head_dim > kMaxHeadDim || spec.head_dim % 2 != 0) {
    return config.Wrong(
        "head_dim",
        fmt::format("is {}, but must be even and from 2 to {}", spec.head_dim, kMaxHeadDim));
  }
  return absl::OkStatus();
}

absl::Status CheckPlainOptions(const JsonFile& config) {
  ZP_RETURN_IF_ERROR(ReadFp8Blocks(config).status());
  ZP_ASSIGN_OR_RETURN(const std::string activation, config.String("hidden_act", "silu"));
  if (activation != "silu") {
    return config.Unsupported("hidden_act",
                              fmt::format("is '{}', but only 'silu' is supported", activation));
  }
  for (const char* field : {"attention_bias", "use_sliding_window"}) {
    ZP_ASSIGN_OR_RETURN(const bool is_on, config.Bool(field, false));
    if (is_on) {
      return config.Unsupported(field, "is true, which is not supported");
    }
  }
  ZP_ASSIGN_OR_RETURN(const std::vector<std::string> layer_types, config.Strings("layer_types"));
  for (const std::string& type : layer_types) {
    if (type != "full_attention") {
      return config.Unsupported(
          "layer_types", fmt::format("has '{}', but only 'full_attention' is supported", type));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<const ModelFamily*> FindFamily(std::string_view model_type) {
  static constexpr std::array kFamilies = {&kQwen3Moe};
  std::string known;
  for (const ModelFamily* family : kFamilies) {
    if (family->model_type == model_type) {
      return family;
    }
    known += fmt::format("{}'{}'", known.empty() ? "" : ", ", family->model_type);
  }
  return absl::UnimplementedError(
      fmt::format("model type '{}' is not supported; supported: {}", model_type, known));
}

absl::StatusOr<spec::ModelSpec> ReadCommonSpec(const JsonFile& config) {
  ZP_RETURN_IF_ERROR(CheckPlainOptions(config));
  spec::ModelSpec spec;
  ZP_ASSIGN_OR_RETURN(spec.family, config.String("model_type"));
  ZP_ASSIGN_OR_RETURN(spec.layer_count, config.Integer("num_hidden_layers", 1, kMaxLayers));
  ZP_ASSIGN_OR_RETURN(spec.model_dim, config.Integer("hidden_size", 1, kMaxModelDim));
  ZP_ASSIGN_OR_RETURN(spec.vocab_count, config.Integer("vocab_size", 1, kMaxVocabulary));
  ZP_ASSIGN_OR_RETURN(spec.max_position_count,
                      config.Integer("max_position_embeddings", 1, kMaxPositions));
  ZP_RETURN_IF_ERROR(ReadAttentionShape(config, spec));
  ZP_ASSIGN_OR_RETURN(spec.rope_theta, ReadRopeTheta(config));
  ZP_ASSIGN_OR_RETURN(spec.rms_epsilon, config.Positive("rms_norm_eps", 1e-6));
  ZP_ASSIGN_OR_RETURN(spec.tied_embeddings, config.Bool("tie_word_embeddings", false));
  ZP_ASSIGN_OR_RETURN(spec.weight_dtype, ReadDType(config));
  return spec;
}

}  // namespace zp::checkpoint
