// The operations of a forward pass, as the model sees them. One implementation per kind of device:
// ops/reference (plain loops in f32, the judge), ops/cpu (oneDNN and SIMD, bf16 or f32), later
// ops/cuda.
//
// What every implementation promises:
//  - A row's result depends on that row alone: not on how many rows come with it, on its place
//  among them, or on the
//    number of threads. This is what makes a request's answer bit-equal alone and in a crowd.
//  - Sums are accumulated in f32; activations are stored in activation_dtype(); the residual stream
//  is f32.
//  - Weights are read only in the packed form that Pack/PackExpert wrote, whose bytes depend on
//  nothing but the weight
//    and the implementation: they may be written to a file and read back on a like machine.
//
// Thread safety: one thread (the rank's engine thread) calls an object; inside, the ops spread over
// its ThreadPool. Packing and the size queries are const, touch no scratch memory and may be called
// from many threads at once. Ownership: all memory is lent by the caller, for the call. Shapes
// stand beside the parameters. Errors: sizes that do not fit together are bugs (CHECK); nothing
// here sees input from outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "ops/matrix.h"
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::ops {

// A weight [out_dim, in_dim] in the layout the kernels read: y = x * W^T.
struct PackedWeight {
  const std::byte* data = nullptr;
  int64_t out_dim = 0;
  int64_t in_dim = 0;
};

// Where the parts of one expert lie in its blob. An expert is one contiguous run of bytes: the unit
// of every gather. Its numbers are those that the products read or, to halve what is moved, the
// 8-bit numbers of the checkpoint, which ExpertFfn widens when it meets them.
struct ExpertLayout {
  int64_t model_dim = 0;
  int64_t expert_dim = 0;
  size_t gate_up_offset = 0;  // packed [2 * expert_dim, model_dim]: gate rows, then up rows
  size_t down_offset = 0;     // packed [model_dim, expert_dim]
  size_t bytes = 0;           // whole blob, a multiple of 4096 (direct I/O)
  // Set if the numbers are 8-bit ones. Their scales are f32: those of gate, of up, of down.
  std::optional<spec::Fp8Blocks> fp8_blocks = std::nullopt;
  size_t scales_offset = 0;

  // With fp8_blocks: the scales of gate, as many as those of up; and those of down.
  int64_t gate_scale_count() const { return fp8_blocks->ScaleCount(expert_dim, model_dim); }
  int64_t down_scale_count() const { return fp8_blocks->ScaleCount(model_dim, expert_dim); }
};

// The experts of one layer: blobs[e] is expert e, or null if no token of this pass was routed to
// it.
struct ExpertBank {
  ExpertLayout layout;
  std::span<const std::byte* const> blobs;  // [expert_count]
};

// Which experts each row goes to. Row-major [rows, experts_per_token].
struct Routing {
  static constexpr int32_t kNoExpert = -1;  // a place that stays empty and costs nothing

  std::span<int32_t> expert_ids;  // as routed: descending by weight; ties go to the lower id
  std::span<float> expert_weights;
  int64_t experts_per_token = 0;
};

// K and V of one layer lie in blocks of 16 consecutive positions, all KV heads of a block together,
// in a layout of the implementation's own. A sequence is a list of blocks: position p lies in its
// block p / 16, slot p % 16.
inline constexpr int kKvBlockTokens = 16;
using KvBlockId = int32_t;

struct KvBlocks {
  std::span<std::byte* const>
      blocks;  // [block_count], each kv_block_bytes() long and 64-byte aligned
};

// Puts the K and V of `row` into a slot. One row may be written to several blocks (a prefix that
// ends inside a block is copied into the block of each sequence that goes on from it).
struct KvWrite {
  int64_t row = 0;
  KvBlockId block = 0;
  int32_t slot = 0;
};

// Consecutive query rows of one sequence. The row at offset i stands at position position_begin + i
// and attends to the positions 0 .. position_begin + i, found through `path`.
struct AttentionSegment {
  int64_t row_begin = 0;
  int32_t row_count = 0;
  int32_t position_begin = 0;
  std::span<const KvBlockId>
      path;  // block b holds positions 16b .. 16b + 15; covers at least the last row's position
};

struct AttentionShape {
  int32_t query_head_count = 0;
  int32_t kv_head_count = 0;
  int32_t head_dim = 0;
  float scale = 0;  // of the scores; usually 1 / sqrt(head_dim)
};

// Cosines and sines for rotary embedding ("rotate half": element i pairs with i + head_dim / 2),
// f32 [position_count, head_dim / 2].
struct RopeTable {
  std::span<const float> cos;
  std::span<const float> sin;
  int32_t half_dim = 0;
};

struct TokenLogit {
  spec::TokenId token = 0;
  float logit = 0;
};

// What is wanted of one row of logits over the whole vocabulary.
struct LogitAsk {
  std::span<const spec::TokenId> columns;  // their logits, in this order
  int32_t top_count = 0;  // the largest logits, descending; ties go to the lower token
};

struct LogitAnswer {
  std::vector<float> column_logits;
  std::vector<TokenLogit> top;
  float log_sum_exp = 0;  // over the whole vocabulary; NaN if any logit is NaN
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual std::string_view name() const = 0;  // e.g. "cpu/bf16 (brg:avx512_core_bf16)"
  virtual spec::DType activation_dtype() const = 0;

  // --- Weights ---
  // Names the packed form, of experts in 8 bits with `fp8`: bytes packed under one name may be read
  // under the same name, on another machine or day, and under no other.
  virtual std::string layout_name(const std::optional<spec::Fp8Blocks>& fp8) const = 0;
  std::string layout_name() const { return layout_name(std::nullopt); }
  virtual size_t packed_bytes(int64_t out_dim, int64_t in_dim) const = 0;
  // `weight` [out_dim, in_dim], any dtype; `packed` is packed_bytes() long and 64-byte aligned.
  virtual void Pack(ConstMatrix weight, std::span<std::byte> packed) const = 0;
  virtual ExpertLayout expert_layout(int64_t model_dim,
                                     int64_t expert_dim,
                                     const std::optional<spec::Fp8Blocks>& fp8) const = 0;
  ExpertLayout expert_layout(int64_t model_dim, int64_t expert_dim) const {
    return expert_layout(model_dim, expert_dim, std::nullopt);
  }
  // gate, up [expert_dim, model_dim]; down [model_dim, expert_dim]; `blob` is layout.bytes long,
  // 64-byte aligned.
  virtual void PackExpert(ConstMatrix gate,
                          ConstMatrix up,
                          ConstMatrix down,
                          std::span<std::byte> blob) const = 0;
  // The same with the layout of 8-bit numbers; all three have the same blocks. What ExpertFfn makes
  // of the blob is, to the bit, what it makes of PackExpert's blob of the widened weights.
  virtual void PackFp8Expert(const Fp8Matrix& gate,
                             const Fp8Matrix& up,
                             const Fp8Matrix& down,
                             std::span<std::byte> blob) const = 0;

  // --- Linear algebra ---
  // y = x W^T, or y += x W^T. `y` is in activation_dtype() or f32; adding needs f32.
  // x [rows, in_dim] activation_dtype(); y [rows, out_dim]
  virtual void MatMul(ConstMatrix x, const PackedWeight& weight, Matrix y) = 0;
  virtual void MatMulAdd(ConstMatrix x, const PackedWeight& weight, Matrix y) = 0;

  // residual += sum over a row's experts, in an order of its own, of weight * down(silu(gate(x))
  // * up(x)). x [rows, model_dim] activation_dtype(); residual [rows, model_dim] f32. A dense FFN
  // is a bank of one expert with weight 1.
  virtual void ExpertFfn(ConstMatrix x,
                         const Routing& routing,
                         const ExpertBank& bank,
                         Matrix residual) = 0;

  // --- Row-wise ---
  // hidden[i] = table[tokens[i]]; table [vocab_count, model_dim] any dtype; hidden [tokens.size(),
  // model_dim] f32
  virtual void Embed(std::span<const spec::TokenId> tokens, ConstMatrix table, Matrix hidden) = 0;
  // y = x / sqrt(mean(x^2) + epsilon) * weight; x [rows, dim] f32; y [rows, dim] activation_dtype()
  // or f32
  virtual void RmsNorm(ConstMatrix x, std::span<const float> weight, float epsilon, Matrix y) = 0;
  // In place: RMS norm of each head with `norm_weight` [head_dim] (skipped when empty), then rotary
  // embedding at positions[row]. heads [rows, head_count * head_dim] activation_dtype()
  virtual void HeadNormRope(Matrix heads,
                            int32_t head_dim,
                            std::span<const float> norm_weight,
                            float epsilon,
                            std::span<const int32_t> positions,
                            const RopeTable& rope) = 0;
  // Softmax over all experts in f32, the k largest, renormalised to sum 1 if `normalize`.
  // router_logits [rows, expert_count] f32
  virtual void RouteExperts(ConstMatrix router_logits, bool normalize, const Routing& routing) = 0;

  // --- Attention ---
  virtual size_t kv_block_bytes(const AttentionShape& shape) const = 0;
  // k, v [rows, kv_head_count * head_dim] activation_dtype(). A block's slots that were never
  // written may hold anything finite (fresh buffers are zero).
  virtual void WriteKv(ConstMatrix k,
                       ConstMatrix v,
                       std::span<const KvWrite> writes,
                       const AttentionShape& shape,
                       const KvBlocks& kv) = 0;
  // Softmax attention, causal within the path; tiles of keys are cut at absolute positions.
  // q, out [rows, query_head_count * head_dim] activation_dtype()
  virtual void Attend(ConstMatrix q,
                      std::span<const AttentionSegment> segments,
                      const AttentionShape& shape,
                      const KvBlocks& kv,
                      Matrix out) = 0;

  // --- Logits ---
  // answers[i] from row i of logits [rows, vocab_count] f32.
  virtual void ReduceLogits(ConstMatrix logits,
                            std::span<const LogitAsk> asks,
                            std::span<LogitAnswer> answers) = 0;
  // Single logits: out[i] = x . table[columns[i]], without the rest of the vocabulary. x [1,
  // model_dim] activation_dtype(); table [vocab_count, model_dim] any dtype.
  virtual void ColumnLogits(ConstMatrix x,
                            ConstMatrix table,
                            std::span<const spec::TokenId> columns,
                            std::span<float> out) = 0;
};

}  // namespace zp::ops
