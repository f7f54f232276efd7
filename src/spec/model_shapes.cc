#include "spec/model_shapes.h"

#include <array>

#include "base/check.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::spec {
namespace {

// What all published Qwen3-MoE models have in common.
ModelSpec Qwen3Moe() {
  ModelSpec spec;
  spec.family = "qwen3_moe";
  spec.vocab_count = 151936;
  spec.max_position_count = 40960;
  spec.kv_head_count = 4;
  spec.head_dim = 128;
  spec.has_qk_norm = true;
  spec.rope_theta = 1e6;
  spec.expert_count = 128;
  spec.experts_per_token = 8;
  spec.normalize_top_k = true;
  spec.rms_epsilon = 1e-6f;
  spec.tied_embeddings = false;
  spec.weight_dtype = DType::kBf16;
  return spec;
}

ModelSpec Qwen3Moe30bA3b() {
  ModelSpec spec = Qwen3Moe();
  spec.layer_count = 48;
  spec.model_dim = 2048;
  spec.query_head_count = 32;
  spec.expert_dim = 768;
  spec.dense_ffn_dim = 6144;
  spec.layer_is_moe.assign(spec.layer_count, true);
  return spec;
}

ModelSpec Qwen3Moe235bA22b() {
  ModelSpec spec = Qwen3Moe();
  spec.layer_count = 94;
  spec.model_dim = 4096;
  spec.query_head_count = 64;
  spec.expert_dim = 1536;
  spec.dense_ffn_dim = 12288;
  spec.layer_is_moe.assign(spec.layer_count, true);
  return spec;
}

struct NamedShape {
  std::string_view name;
  ModelSpec (*make)();
};

constexpr std::array kNamedShapes = {NamedShape{"qwen3-30b-a3b", Qwen3Moe30bA3b},
                                     NamedShape{"qwen3-235b-a22b", Qwen3Moe235bA22b}};

}  // namespace

absl::StatusOr<ModelSpec> FindModelShape(std::string_view name) {
  for (const NamedShape& shape : kNamedShapes) {
    if (shape.name == name) {
      return shape.make();
    }
  }
  return absl::NotFoundError(fmt::format(
      "there is no model shape '{}'; the names are: {}", name, fmt::join(ModelShapeNames(), ", ")));
}

std::vector<std::string> ModelShapeNames() {
  std::vector<std::string> names;
  names.reserve(std::size(kNamedShapes));
  for (const NamedShape& shape : kNamedShapes) {
    names.emplace_back(shape.name);
  }
  return names;
}

ModelSpec WithLayerCount(ModelSpec spec, int32_t layer_count) {
  ZP_CHECK(1 <= layer_count && layer_count <= spec.layer_count) << layer_count;
  spec.layer_count = layer_count;
  spec.layer_is_moe.resize(layer_count);
  return spec;
}

}  // namespace zp::spec
