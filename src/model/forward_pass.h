// One forward pass: a trie of tokens in, the final hidden states of the asked rows out.
//
// Layer-major: all rows pass layer l before any row enters layer l + 1, in chunks that bound
// activation memory, while the banks of the next layers are on their way (the window). Nothing
// outlives a layer but the residual stream: K and V are overwritten by the next layer, except where
// the batch says that somebody keeps them. In the last layer rows that nobody asked for stop after
// K and V.
//
// Thread safety: engine thread only.
// Ownership: the weights, the MoE block and the kernels must outlive the pass; its buffers are kept
// and reused between runs.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "memory/buffer.h"
#include "model/model_weights.h"
#include "model/moe_block.h"
#include "model/pass_profile.h"
#include "model/rope_cache.h"
#include "model/token_batch.h"
#include "ops/kernels.h"

namespace zp::model {

class ForwardPass {
 public:
  // chunk_rows: how many rows go through a step of a layer at once.
  ForwardPass(const ModelWeights& weights,
              MoeBlock& moe,
              ops::Kernels& kernels,
              int64_t chunk_rows);

  // Hidden states after the last norm, [asked_rows.size(), model_dim] in activation_dtype; valid
  // until the next Run. Fails if the experts of a layer cannot be had; the next Run begins afresh.
  // REQUIRES: at least one row and one asked row.
  absl::StatusOr<ops::ConstMatrix> Run(const TokenBatch& batch, PassProfile& profile);

  // K and V of 16 tokens in one layer.
  size_t kv_block_bytes() const { return kernels_.kv_block_bytes(attention_shape_); }

 private:
  struct RowRange {
    int64_t begin = 0;
    int64_t count = 0;
  };
  // The rows that a step of a layer runs over: their residual stream, positions and paths.
  struct Rows {
    ops::Matrix residual;                // [count, h] f32
    std::span<const int32_t> positions;  // [count]
    std::vector<ops::AttentionSegment> segments;
  };

  absl::Status RunLayer(int32_t layer,
                        const TokenBatch& batch,
                        ops::Matrix hidden,
                        PassProfile& profile);
  absl::StatusOr<ops::Matrix> RunLastLayer(const TokenBatch& batch,
                                           ops::Matrix hidden,
                                           PassProfile& profile);

  // The steps of a layer, each over one chunk.
  ops::ConstMatrix AttentionNorm(const LayerWeights& layer,
                                 const ops::Matrix& residual,
                                 PassProfile& profile);
  void WriteKeysAndValues(const LayerWeights& layer,
                          const TokenBatch& batch,
                          RowRange range,
                          ops::ConstMatrix normed,
                          PassProfile& profile);
  void AttentionBlock(const LayerWeights& layer,
                      const Rows& rows,
                      ops::ConstMatrix normed,
                      PassProfile& profile);
  absl::Status FfnBlock(int32_t layer_index, ops::Matrix residual, PassProfile& profile);

  ops::Routing RouteAllToOne(int64_t row_count);
  ops::Routing RouteToExperts(const LayerWeights& layer,
                              ops::ConstMatrix normed,
                              PassProfile& profile);
  void BeginLayer(int32_t layer, const TokenBatch& batch, PassProfile& profile);
  absl::Status EndLayer(int32_t layer, PassProfile& profile);

  void PrepareKv(const TokenBatch& batch);
  ops::Matrix MatrixIn(memory::Buffer& buffer, spec::DType dtype, int64_t rows, int64_t cols) const;

  const ModelWeights& weights_;
  MoeBlock& moe_;
  const spec::ModelSpec& spec_;
  ops::Kernels& kernels_;
  const int64_t chunk_rows_;
  const ops::AttentionShape attention_shape_;
  RopeCache rope_cache_;
  ops::RopeTable rope_;

  memory::Buffer hidden_, asked_hidden_, final_hidden_;
  memory::Buffer normed_, query_, key_value_, attended_, router_logits_;
  memory::Buffer kv_bytes_;
  std::vector<std::byte*> kv_blocks_;
  std::vector<int32_t> expert_ids_;
  std::vector<float> expert_weights_;
  std::vector<int32_t> asked_positions_;
};

}  // namespace zp::model
