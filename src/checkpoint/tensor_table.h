// Which tensors a model of a given spec has, what shape each has, and where each sits in a flat
// table.
//
// Thread safety: immutable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

// One tensor of a model; `layer` and `expert` are -1 where the role has none.
struct TensorKey {
  TensorRole role = TensorRole::kEmbedding;
  int32_t layer = -1;
  int32_t expert = -1;
};

// The shape that the spec promises, see TensorRole.
std::vector<int64_t> ShapeOf(const spec::ModelSpec& spec, TensorRole role);

// Every tensor of the model, in the order a forward pass meets them. With tied embeddings the
// output head is no tensor of its own.
std::vector<TensorKey> TensorKeys(const spec::ModelSpec& spec);

// A place for every tensor: SlotOf(key) in [0, slot_count()). Some slots stay unused.
class TensorSlots {
 public:
  explicit TensorSlots(const spec::ModelSpec& spec);

  size_t slot_count() const;
  // REQUIRES: the model has this tensor (the output head of tied embeddings is the embedding).
  size_t SlotOf(const TensorKey& key) const;

 private:
  const bool tied_embeddings_;
  const bool has_qk_norm_;
  const int32_t expert_count_;
  const std::vector<bool> layer_is_moe_;
};

}  // namespace zp::checkpoint
