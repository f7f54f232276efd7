#include "checkpoint/tensor_table.h"

#include "base/check.h"

namespace zp::checkpoint {
namespace {

using enum TensorRole;

// The roles stand in TensorRole in this order: the whole model's, a layer's, an expert's, a dense
// FFN's.
constexpr int kFirstLayerRole = static_cast<int>(kAttentionNorm);
constexpr int kFirstExpertRole = static_cast<int>(kExpertGate);
constexpr int kFirstDenseRole = static_cast<int>(kDenseGate);
constexpr int kRoleCount = static_cast<int>(kDenseDown) + 1;
constexpr int kExpertRoles = kFirstDenseRole - kFirstExpertRole;
constexpr int kLayerRoles = kRoleCount - kFirstLayerRole - kExpertRoles;

bool IsPerLayer(TensorRole role) { return static_cast<int>(role) >= kFirstLayerRole; }
bool IsDense(TensorRole role) { return static_cast<int>(role) >= kFirstDenseRole; }
bool IsPerExpert(TensorRole role) {
  return static_cast<int>(role) >= kFirstExpertRole && !IsDense(role);
}

size_t SlotsPerLayer(int32_t expert_count) {
  return kLayerRoles + size_t{kExpertRoles} * expert_count;
}

void AppendFfnKeys(const spec::ModelSpec& spec, int32_t layer, std::vector<TensorKey>& keys) {
  if (!spec.layer_is_moe[layer]) {
    for (const TensorRole role : {kDenseGate, kDenseUp, kDenseDown}) {
      keys.push_back({role, layer});
    }
    return;
  }
  keys.push_back({kRouter, layer});
  for (int32_t expert = 0; expert < spec.expert_count; ++expert) {
    for (const TensorRole role : {kExpertGate, kExpertUp, kExpertDown}) {
      keys.push_back({role, layer, expert});
    }
  }
}

}  // namespace

std::vector<int64_t> ShapeOf(const spec::ModelSpec& spec, TensorRole role) {
  switch (role) {
    case kEmbedding:
    case kOutputHead:
      return {spec.vocab_count, spec.model_dim};
    case kFinalNorm:
    case kAttentionNorm:
    case kFfnNorm:
      return {spec.model_dim};
    case kQuery:
      return {spec.query_dim(), spec.model_dim};
    case kKey:
    case kValue:
      return {spec.kv_dim(), spec.model_dim};
    case kQueryNorm:
    case kKeyNorm:
      return {spec.head_dim};
    case kAttentionOut:
      return {spec.model_dim, spec.query_dim()};
    case kRouter:
      return {spec.expert_count, spec.model_dim};
    case kExpertGate:
    case kExpertUp:
      return {spec.expert_dim, spec.model_dim};
    case kExpertDown:
      return {spec.model_dim, spec.expert_dim};
    case kDenseGate:
    case kDenseUp:
      return {spec.dense_ffn_dim, spec.model_dim};
    case kDenseDown:
      return {spec.model_dim, spec.dense_ffn_dim};
  }
  ZP_CHECK(false) << "role " << static_cast<int>(role);
  return {};
}

std::vector<TensorKey> TensorKeys(const spec::ModelSpec& spec) {
  std::vector<TensorKey> keys = {{kEmbedding}};
  for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
    for (const TensorRole role : {kAttentionNorm, kQuery, kKey, kValue}) {
      keys.push_back({role, layer});
    }
    if (spec.has_qk_norm) {
      keys.push_back({kQueryNorm, layer});
      keys.push_back({kKeyNorm, layer});
    }
    keys.push_back({kAttentionOut, layer});
    keys.push_back({kFfnNorm, layer});
    AppendFfnKeys(spec, layer, keys);
  }
  keys.push_back({kFinalNorm});
  if (!spec.tied_embeddings) {
    keys.push_back({kOutputHead});
  }
  return keys;
}

TensorSlots::TensorSlots(const spec::ModelSpec& spec)
    : tied_embeddings_(spec.tied_embeddings),
      has_qk_norm_(spec.has_qk_norm),
      expert_count_(spec.expert_count),
      layer_is_moe_(spec.layer_is_moe) {}

size_t TensorSlots::slot_count() const {
  return kFirstLayerRole + layer_is_moe_.size() * SlotsPerLayer(expert_count_);
}

size_t TensorSlots::SlotOf(const TensorKey& key) const {
  const auto& [role, layer, expert] = key;
  const int role_index = static_cast<int>(role);
  if (!IsPerLayer(role)) {
    const bool is_tied_head = role == kOutputHead && tied_embeddings_;
    return is_tied_head ? static_cast<size_t>(kEmbedding) : role_index;
  }
  ZP_CHECK(0 <= layer && layer < static_cast<int32_t>(layer_is_moe_.size())) << "layer " << layer;
  ZP_CHECK(has_qk_norm_ || (role != kQueryNorm && role != kKeyNorm)) << "no q/k norm here";
  ZP_CHECK(!IsDense(role) || !layer_is_moe_[layer]) << "layer " << layer << " has experts";
  const size_t first_slot = kFirstLayerRole + layer * SlotsPerLayer(expert_count_);
  if (!IsPerExpert(role)) {
    ZP_CHECK(role != kRouter || layer_is_moe_[layer]) << "layer " << layer << " has no router";
    return first_slot + role_index - kFirstLayerRole - (IsDense(role) ? kExpertRoles : 0);
  }
  ZP_CHECK(layer_is_moe_[layer]) << "layer " << layer << " has no experts";
  ZP_CHECK(0 <= expert && expert < expert_count_) << "expert " << expert;
  return first_slot + kLayerRoles + size_t{kExpertRoles} * expert + role_index - kFirstExpertRole;
}

}  // namespace zp::checkpoint
