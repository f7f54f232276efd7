// The weights of a model in the form the kernels read: dense ones here, experts in an
// ExpertProvider.
//
// Thread safety: immutable once loaded.
// Ownership: owns all dense weights; the experts belong to the provider they were loaded into.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "experts/resident_experts.h"
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
  // Reads every tensor of `checkpoint` once, checks that its numbers are finite, packs it with
  // `kernels` on `pool`'s threads and releases it. InvalidArgument names the tensor that holds a
  // NaN or an infinity.
  static absl::StatusOr<std::unique_ptr<ModelWeights>> Load(
      const checkpoint::Checkpoint& checkpoint,
      const ops::Kernels& kernels,
      base::ThreadPool& pool);

  const spec::ModelSpec& spec() const { return spec_; }
  const LayerWeights& layer(int32_t index) const { return layers_[index]; }
  std::span<const float> final_norm() const { return final_norm_; }
  ops::ConstMatrix embedding() const { return embedding_; }      // [vocab, h], as in the checkpoint
  ops::ConstMatrix output_head() const { return output_head_; }  // [vocab, h], as in the checkpoint
  ops::PackedWeight packed_output_head() const { return packed_output_head_; }
  const ops::ExpertLayout& expert_layout() const { return expert_layout_; }
  const ops::ExpertLayout& dense_layout() const { return dense_layout_; }

  // The experts, all of them resident.
  experts::ExpertProvider& experts() { return *experts_; }

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
  ops::ExpertLayout expert_layout_;
  ops::ExpertLayout dense_layout_;
  std::unique_ptr<experts::ResidentExperts> experts_;
};

}  // namespace zp::model
