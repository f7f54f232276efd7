#include "model/forward_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace zp::model {
namespace {

using spec::DType;

// The part of the batch's paths that lies in rows [begin, begin + count), counted from `begin`.
std::vector<ops::AttentionSegment> ClipSegments(const TokenBatch& batch,
                                                int64_t begin,
                                                int64_t count) {
  std::vector<ops::AttentionSegment> clipped;
  auto segment = std::ranges::upper_bound(batch.segments, begin, {}, &PathSegment::row_begin) - 1;
  for (; segment != batch.segments.end() && segment->row_begin < begin + count; ++segment) {
    const int64_t first = std::max(segment->row_begin, begin);
    const int64_t last = std::min(segment->row_begin + segment->row_count, begin + count);
    clipped.push_back({.row_begin = first - begin,
                       .row_count = static_cast<int32_t>(last - first),
                       .position_begin = segment->position_begin +
                                         static_cast<int32_t>(first - segment->row_begin),
                       .path = segment->path});
  }
  return clipped;
}

// One segment per run of asked rows that are neighbours in the batch; rows counted from `begin` in
// the list of asked rows.
std::vector<ops::AttentionSegment> AskedSegments(const TokenBatch& batch,
                                                 std::span<const int64_t> asked_rows) {
  std::vector<ops::AttentionSegment> runs;
  for (size_t index = 0; index < asked_rows.size();) {
    const int64_t row = asked_rows[index];
    const PathSegment& segment =
        *(std::ranges::upper_bound(batch.segments, row, {}, &PathSegment::row_begin) - 1);
    const int64_t segment_end = segment.row_begin + segment.row_count;
    size_t run_end = index + 1;
    while (run_end < asked_rows.size() && asked_rows[run_end] < segment_end &&
           asked_rows[run_end] == asked_rows[run_end - 1] + 1) {
      ++run_end;
    }
    runs.push_back(
        {.row_begin = static_cast<int64_t>(index),
         .row_count = static_cast<int32_t>(run_end - index),
         .position_begin = segment.position_begin + static_cast<int32_t>(row - segment.row_begin),
         .path = segment.path});
    index = run_end;
  }
  return runs;
}

}  // namespace

ForwardPass::ForwardPass(const ModelWeights& weights,
                         MoeBlock& moe,
                         ops::Kernels& kernels,
                         int64_t chunk_rows)
    : weights_(weights),
      moe_(moe),
      spec_(weights.spec()),
      kernels_(kernels),
      chunk_rows_(chunk_rows),
      attention_shape_{.query_head_count = spec_.query_head_count,
                       .kv_head_count = spec_.kv_head_count,
                       .head_dim = spec_.head_dim,
                       .scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim))},
      rope_cache_(spec_.head_dim, spec_.rope_theta) {
  ZP_CHECK(chunk_rows >= 1) << chunk_rows;
}

absl::StatusOr<ops::ConstMatrix> ForwardPass::Run(const TokenBatch& batch, PassProfile& profile) {
  ZP_CHECK(batch.row_count() > 0 && !batch.asked_rows.empty());
  PrepareKv(batch);
  const ops::Matrix hidden = MatrixIn(hidden_, DType::kF32, batch.row_count(), spec_.model_dim);
  profile.Timed(Op::kEmbed, [&] { kernels_.Embed(batch.tokens, weights_.embedding(), hidden); });
  for (int32_t layer = 0; layer + 1 < spec_.layer_count; ++layer) {
    BeginLayer(layer, batch, profile);
    ZP_RETURN_IF_ERROR(RunLayer(layer, batch, hidden, profile));
  }
  BeginLayer(spec_.layer_count - 1, batch, profile);
  ZP_ASSIGN_OR_RETURN(const ops::Matrix asked, RunLastLayer(batch, hidden, profile));
  profile.EndLayers();
  const ops::Matrix final_hidden =
      MatrixIn(final_hidden_, kernels_.activation_dtype(), asked.rows, spec_.model_dim);
  profile.Timed(Op::kNorm, [&] {
    kernels_.RmsNorm(asked, weights_.final_norm(), spec_.rms_epsilon, final_hidden);
  });
  return ops::ConstMatrix(final_hidden);
}

absl::Status ForwardPass::RunLayer(int32_t layer_index,
                                   const TokenBatch& batch,
                                   ops::Matrix hidden,
                                   PassProfile& profile) {
  const LayerWeights& layer = weights_.layer(layer_index);
  for (int64_t begin = 0; begin < batch.row_count(); begin += chunk_rows_) {
    const RowRange range{begin, std::min(chunk_rows_, batch.row_count() - begin)};
    const Rows rows{.residual = hidden.Rows(range.begin, range.count),
                    .positions = std::span(batch.positions).subspan(range.begin, range.count),
                    .segments = ClipSegments(batch, range.begin, range.count)};
    const ops::ConstMatrix normed = AttentionNorm(layer, rows.residual, profile);
    WriteKeysAndValues(layer, batch, range, normed, profile);
    AttentionBlock(layer, rows, normed, profile);
    ZP_RETURN_IF_ERROR(FfnBlock(layer_index, rows.residual, profile));
  }
  return EndLayer(layer_index, profile);
}

absl::StatusOr<ops::Matrix> ForwardPass::RunLastLayer(const TokenBatch& batch,
                                                      ops::Matrix hidden,
                                                      PassProfile& profile) {
  const int32_t layer_index = spec_.layer_count - 1;
  const LayerWeights& layer = weights_.layer(layer_index);
  for (int64_t begin = 0; begin < batch.row_count(); begin += chunk_rows_) {
    const RowRange range{begin, std::min(chunk_rows_, batch.row_count() - begin)};
    const ops::ConstMatrix normed =
        AttentionNorm(layer, hidden.Rows(range.begin, range.count), profile);
    WriteKeysAndValues(layer, batch, range, normed, profile);
  }

  const auto asked_count = static_cast<int64_t>(batch.asked_rows.size());
  const ops::Matrix asked_hidden =
      MatrixIn(asked_hidden_, DType::kF32, asked_count, spec_.model_dim);
  asked_positions_.clear();
  for (int64_t index = 0; index < asked_count; ++index) {
    const int64_t row = batch.asked_rows[index];
    std::memcpy(
        asked_hidden.row<float>(index), hidden.row<float>(row), spec_.model_dim * sizeof(float));
    asked_positions_.push_back(batch.positions[row]);
  }
  for (int64_t begin = 0; begin < asked_count; begin += chunk_rows_) {
    const int64_t count = std::min(chunk_rows_, asked_count - begin);
    const Rows rows{
        .residual = asked_hidden.Rows(begin, count),
        .positions = std::span(asked_positions_).subspan(begin, count),
        .segments = AskedSegments(batch, std::span(batch.asked_rows).subspan(begin, count))};
    const ops::ConstMatrix normed = AttentionNorm(layer, rows.residual, profile);
    AttentionBlock(layer, rows, normed, profile);
    ZP_RETURN_IF_ERROR(FfnBlock(layer_index, rows.residual, profile));
  }
  ZP_RETURN_IF_ERROR(EndLayer(layer_index, profile));
  return asked_hidden;
}

ops::ConstMatrix ForwardPass::AttentionNorm(const LayerWeights& layer,
                                            const ops::Matrix& residual,
                                            PassProfile& profile) {
  const ops::Matrix normed =
      MatrixIn(normed_, kernels_.activation_dtype(), residual.rows, spec_.model_dim);
  profile.Timed(Op::kNorm, [&] {
    kernels_.RmsNorm(residual, layer.attention_norm, spec_.rms_epsilon, normed);
  });
  return normed;
}

void ForwardPass::WriteKeysAndValues(const LayerWeights& layer,
                                     const TokenBatch& batch,
                                     RowRange range,
                                     ops::ConstMatrix normed,
                                     PassProfile& profile) {
  const int64_t kv_dim = spec_.kv_dim();
  const ops::Matrix key_value =
      MatrixIn(key_value_, kernels_.activation_dtype(), range.count, 2 * kv_dim);
  const ops::Matrix key = key_value.Columns(0, kv_dim);
  const ops::Matrix value = key_value.Columns(kv_dim, kv_dim);
  const auto positions = std::span(batch.positions).subspan(range.begin, range.count);
  profile.Timed(Op::kQkv, [&] { kernels_.MatMul(normed, layer.key_value, key_value); });
  profile.Timed(Op::kRope, [&] {
    kernels_.HeadNormRope(key, spec_.head_dim, layer.key_norm, spec_.rms_epsilon, positions, rope_);
  });
  profile.Timed(Op::kKvWrite, [&] {
    const auto first =
        std::ranges::lower_bound(batch.kv_writes, range.begin, {}, &ops::KvWrite::row);
    const auto last = std::ranges::lower_bound(
        batch.kv_writes, range.begin + range.count, {}, &ops::KvWrite::row);
    std::vector<ops::KvWrite> writes(first, last);
    for (ops::KvWrite& write : writes) {
      write.row -= range.begin;
    }
    kernels_.WriteKv(key, value, writes, attention_shape_, {kv_blocks_});
  });
}

void ForwardPass::AttentionBlock(const LayerWeights& layer,
                                 const Rows& rows,
                                 ops::ConstMatrix normed,
                                 PassProfile& profile) {
  const int64_t row_count = rows.residual.rows;
  const DType dtype = kernels_.activation_dtype();
  const ops::Matrix query = MatrixIn(query_, dtype, row_count, spec_.query_dim());
  const ops::Matrix attended = MatrixIn(attended_, dtype, row_count, spec_.query_dim());
  profile.Timed(Op::kQkv, [&] { kernels_.MatMul(normed, layer.query, query); });
  profile.Timed(Op::kRope, [&] {
    kernels_.HeadNormRope(
        query, spec_.head_dim, layer.query_norm, spec_.rms_epsilon, rows.positions, rope_);
  });
  profile.Timed(Op::kAttention, [&] {
    kernels_.Attend(query, rows.segments, attention_shape_, {kv_blocks_}, attended);
  });
  profile.Timed(Op::kAttentionOut,
                [&] { kernels_.MatMulAdd(attended, layer.attention_out, rows.residual); });
}

absl::Status ForwardPass::FfnBlock(int32_t layer_index,
                                   ops::Matrix residual,
                                   PassProfile& profile) {
  const LayerWeights& layer = weights_.layer(layer_index);
  const ops::Matrix normed =
      MatrixIn(normed_, kernels_.activation_dtype(), residual.rows, spec_.model_dim);
  profile.Timed(Op::kNorm,
                [&] { kernels_.RmsNorm(residual, layer.ffn_norm, spec_.rms_epsilon, normed); });
  if (spec_.layer_is_moe[layer_index]) {
    const ops::Routing routing = RouteToExperts(layer, normed, profile);
    return moe_.Run(layer_index, normed, routing, residual, profile);
  }
  const ops::ExpertBank bank{weights_.dense_layout(), std::span(&layer.dense_ffn, 1)};
  profile.Timed(Op::kFfn,
                [&] { kernels_.ExpertFfn(normed, RouteAllToOne(residual.rows), bank, residual); });
  return absl::OkStatus();
}

ops::Routing ForwardPass::RouteToExperts(const LayerWeights& layer,
                                         ops::ConstMatrix normed,
                                         PassProfile& profile) {
  const int64_t slots = normed.rows * spec_.experts_per_token;
  expert_ids_.resize(slots);
  expert_weights_.resize(slots);
  const ops::Routing routing{expert_ids_, expert_weights_, spec_.experts_per_token};
  profile.Timed(Op::kRouter, [&] {
    const ops::Matrix logits =
        MatrixIn(router_logits_, DType::kF32, normed.rows, spec_.expert_count);
    kernels_.MatMul(normed, layer.router, logits);
    kernels_.RouteExperts(logits, spec_.normalize_top_k, routing);
  });
  return routing;
}

ops::Routing ForwardPass::RouteAllToOne(int64_t row_count) {
  expert_ids_.assign(row_count, 0);
  expert_weights_.assign(row_count, 1.0f);
  return {expert_ids_, expert_weights_, 1};
}

void ForwardPass::BeginLayer(int32_t layer, const TokenBatch& batch, PassProfile& profile) {
  profile.BeginLayer(layer);
  const size_t block_bytes = kv_block_bytes();
  for (size_t block = 0; block < batch.kept_blocks.size(); ++block) {
    kv_blocks_[block] = batch.kept_blocks[block] + layer * block_bytes;
  }
  if (spec_.layer_is_moe[layer]) {
    moe_.BeginLayer(layer);
  }
}

absl::Status ForwardPass::EndLayer(int32_t layer, PassProfile& profile) {
  return spec_.layer_is_moe[layer] ? moe_.EndLayer(layer, profile) : absl::OkStatus();
}

void ForwardPass::PrepareKv(const TokenBatch& batch) {
  const size_t block_bytes = kv_block_bytes();
  const auto kept_count = static_cast<int32_t>(batch.kept_blocks.size());  // BeginLayer's
  kv_bytes_.EnsureBytes((batch.block_count - kept_count) * block_bytes, "kv of one layer");
  kv_blocks_.resize(batch.block_count);
  for (int32_t block = kept_count; block < batch.block_count; ++block) {
    kv_blocks_[block] = kv_bytes_.data() + (block - kept_count) * block_bytes;
  }
  // What an earlier pass left in slots that this one does not write must be finite: zero is.
  for (const ops::KvBlockId block : batch.ragged_blocks) {
    std::memset(kv_blocks_[block], 0, block_bytes);
  }
  rope_ = rope_cache_.Table(std::ranges::max(batch.positions) + 1);
}

ops::Matrix ForwardPass::MatrixIn(memory::Buffer& buffer,
                                  DType dtype,
                                  int64_t rows,
                                  int64_t cols) const {
  buffer.EnsureBytes(rows * cols * SizeOf(dtype), "activations");
  return {buffer.data(), dtype, rows, cols, cols};
}

}  // namespace zp::model
