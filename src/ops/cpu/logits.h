// Choosing from rows of logits: the experts of a token, the tokens of a vocabulary.
//
// Ties go to the lower index; NaN comes after every number. Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/kernels.h"

namespace zp::ops::cpu {

// The `count` largest of `values` (all, if there are fewer), descending.
std::vector<TokenLogit> LargestLogits(std::span<const float> values, int32_t count);

// One row of Kernels::RouteExperts. A NaN among `logits` makes all weights NaN.
void RouteRow(std::span<const float> logits,
              bool normalize,
              std::span<int32_t> expert_ids,
              std::span<float> expert_weights);

// One row of Kernels::ReduceLogits.
LogitAnswer ReduceRow(std::span<const float> logits, const LogitAsk& ask);

}  // namespace zp::ops::cpu
