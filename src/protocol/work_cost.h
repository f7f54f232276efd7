// What a work will cost a rank: the one estimate that routing, admission and the scheduler use.
//
// Thread safety: pure function.
#pragma once

#include <cstdint>
#include <span>

#include "protocol/block_chain.h"
#include "protocol/work.h"
#include "spec/model_spec.h"

namespace zp::protocol {

struct WorkCost {
  int64_t tokens = 0;  // computed
  double flops = 0;    // true FLOPs (spec/flops.h)
};

// Alone, by a rank that holds the first cached_tokens[i] tokens of sequence i (empty: none held).
// Tokens that the sequences of a work have in common at their beginning, in whole blocks, count
// once. Rows asked inside a held prefix are computed from the block before the first of them on.
// REQUIRES: no sequence is empty; row positions lie in their sequence.
WorkCost CostOf(const spec::ModelSpec& spec,
                const Work& work,
                std::span<const int32_t> cached_tokens = {});

// How many of the first `held_tokens` tokens of `sequence` a rank that holds them need not compute:
// whole blocks, up to the first position whose hidden state is wanted.
int32_t SkippableTokens(const Sequence& sequence, int32_t held_tokens);

}  // namespace zp::protocol
