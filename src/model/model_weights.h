// The dense weights of a model in the form the kernels read: everything but the experts of its MoE
// layers, which an ExpertProvider brings.
//
// Thread safety: immutable once loaded. Ownership: owns its bytes; shared by the ranks of a
// process.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "memory/buffer.h"
#include "ops/kernels.h"
#include "spec/model_spec.h"

namespace zp::model {

struct LayerWeights {
  std::span<const float> attention_norm;  // [h]
  ops::PackedWeight query;                // [n_q * d, h]
  ops::PackedWeight key_value;            // [2 * n_kv * d, h]: keys, then values
  std::span<const float> query_norm;      // [d], or empty
  std::span<const float> key_norm;        // [d], or empty
  ops::PackedWeight attention_out;        // [h, n_q * d]
  std::span<const float> ffn_norm;        // [h]
  ops::PackedWeight router;               // [E, h]; layers with experts
  const std::byte* dense_ffn = nullptr;   // one blob of dense_layout; layers without
};

class ModelWeights {
 public:
  // Reads every dense tensor of `checkpoint` once, checks that its numbers are finite, packs it
  // with `kernels` and releases it. InvalidArgument names the tensor that holds a NaN or an
  // infinity.
  static absl::StatusOr<std::shared_ptr<const ModelWeights>> Load(
      const checkpoint::Checkpoint& checkpoint, const ops::Kernels& kernels);

  const spec::ModelSpec& spec() const { return spec_; }
  const LayerWeights& layer(int32_t index) const { return layers_[index]; }
  std::span<const float> final_norm() const { return final_norm_; }
  ops::ConstMatrix embedding() const { return embedding_; }      // [vocab, h], as in the checkpoint
  ops::ConstMatrix output_head() const { return output_head_; }  // [vocab, h], as in the checkpoint
  ops::PackedWeight packed_output_head() const { return packed_output_head_; }
  const ops::ExpertLayout& dense_layout() const { return dense_layout_; }

 private:
  friend class WeightLoader;
  ModelWeights() = default;

  spec::ModelSpec spec_;
  std::vector<memory::Buffer> buffers_;
  std::vector<LayerWeights> layers_;
  std::span<const float> final_norm_;
  ops::ConstMatrix embedding_;
  ops::ConstMatrix output_head_;
  ops::PackedWeight packed_output_head_;
  ops::ExpertLayout dense_layout_;
};

}  // namespace zp::model
