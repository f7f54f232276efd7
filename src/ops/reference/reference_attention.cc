#include "ops/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"

namespace zp::ops::reference {
namespace {

// The keys (or, one slot run further, the values) of one head in one block: [slot][head_dim].
float* HeadKeys(const AttentionShape& shape, std::byte* block, int32_t kv_head) {
  return reinterpret_cast<float*>(block) + int64_t{2} * kv_head * kKvBlockTokens * shape.head_dim;
}
float* HeadValues(const AttentionShape& shape, std::byte* block, int32_t kv_head) {
  return HeadKeys(shape, block, kv_head) + int64_t{kKvBlockTokens} * shape.head_dim;
}

// out [head_dim] = sum over the positions 0 .. position of softmax(scale * q.k) * v.
void AttendRow(const float* query,
               int32_t position,
               int32_t kv_head,
               std::span<const KvBlockId> path,
               const AttentionShape& shape,
               const KvBlocks& kv,
               float* out) {
  const auto slot_of = [&](int32_t key, auto head_of) {
    std::byte* block = kv.blocks[path[key / kKvBlockTokens]];
    return head_of(shape, block, kv_head) + int64_t{key % kKvBlockTokens} * shape.head_dim;
  };
  std::vector<float> weights(position + 1);
  for (int32_t key = 0; key <= position; ++key) {
    const float* k = slot_of(key, HeadKeys);
    for (int32_t i = 0; i < shape.head_dim; ++i) {
      weights[key] += query[i] * k[i];
    }
    weights[key] *= shape.scale;
  }
  const float max = *std::max_element(weights.begin(), weights.end());
  float sum = 0;
  for (float& weight : weights) {
    weight = std::exp(weight - max);
    sum += weight;
  }
  std::fill_n(out, shape.head_dim, 0.0f);
  for (int32_t key = 0; key <= position; ++key) {
    const float* v = slot_of(key, HeadValues);
    for (int32_t i = 0; i < shape.head_dim; ++i) {
      out[i] += weights[key] / sum * v[i];
    }
  }
}

}  // namespace

size_t KvBlockBytes(const AttentionShape& shape) {
  return size_t{2} * shape.kv_head_count * kKvBlockTokens * shape.head_dim * sizeof(float);
}

void WriteKv(ConstMatrix k,
             ConstMatrix v,
             std::span<const KvWrite> writes,
             const AttentionShape& shape,
             const KvBlocks& kv) {
  ZP_CHECK(k.dtype == spec::DType::kF32 && v.dtype == spec::DType::kF32);
  for (const KvWrite& write : writes) {
    std::byte* block = kv.blocks[write.block];
    for (int32_t head = 0; head < shape.kv_head_count; ++head) {
      const int64_t source = int64_t{head} * shape.head_dim;
      const int64_t target = int64_t{write.slot} * shape.head_dim;
      std::copy_n(
          k.row<float>(write.row) + source, shape.head_dim, HeadKeys(shape, block, head) + target);
      std::copy_n(v.row<float>(write.row) + source,
                  shape.head_dim,
                  HeadValues(shape, block, head) + target);
    }
  }
}

void Attend(ConstMatrix q,
            std::span<const AttentionSegment> segments,
            const AttentionShape& shape,
            const KvBlocks& kv,
            Matrix out) {
  ZP_CHECK(q.dtype == spec::DType::kF32 && out.dtype == spec::DType::kF32);
  const int32_t group_heads = shape.query_head_count / shape.kv_head_count;
  for (const AttentionSegment& segment : segments) {
    for (int32_t i = 0; i < segment.row_count; ++i) {
      for (int32_t head = 0; head < shape.query_head_count; ++head) {
        const int64_t column = int64_t{head} * shape.head_dim;
        AttendRow(q.row<float>(segment.row_begin + i) + column,
                  segment.position_begin + i,
                  head / group_heads,
                  segment.path,
                  shape,
                  kv,
                  out.row<float>(segment.row_begin + i) + column);
      }
    }
  }
}

}  // namespace zp::ops::reference
