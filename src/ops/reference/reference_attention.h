// Attention in plain loops: a full softmax over the keys on the path, row by row.
//
// Separate from the other reference operations because it alone knows the layout of a K/V block:
// f32 [kv_head][K, V][slot][head_dim]. Thread safety and ownership: as in ops/kernels.h.
#pragma once

#include <cstddef>
#include <span>

#include "ops/kernels.h"
#include "ops/matrix.h"

namespace zp::ops::reference {

size_t KvBlockBytes(const AttentionShape& shape);

// k, v [rows, kv_head_count * head_dim] f32
void WriteKv(ConstMatrix k,
             ConstMatrix v,
             std::span<const KvWrite> writes,
             const AttentionShape& shape,
             const KvBlocks& kv);

// q, out [rows, query_head_count * head_dim] f32
void Attend(ConstMatrix q,
            std::span<const AttentionSegment> segments,
            const AttentionShape& shape,
            const KvBlocks& kv,
            Matrix out);

}  // namespace zp::ops::reference
