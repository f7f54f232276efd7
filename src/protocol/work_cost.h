// What a work will cost a rank: the one estimate that routing, admission and the scheduler use.
//
// Thread safety: pure functions; a PassCost is one thread's.
#pragma once

#include <cstdint>
#include <span>

#include "absl/container/flat_hash_set.h"
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

// Where sequence i is computed from begins[i] on, whatever the reason; [sequences].
WorkCost CostFrom(const spec::ModelSpec& spec, const Work& work, std::span<const int32_t> begins);

// What works cost that go through one pass together: what they have in common at their beginning,
// in whole blocks, costs the first that brings it.
class PassCost {
 public:
  // `spec` must outlive this.
  explicit PassCost(const spec::ModelSpec& spec) : spec_(spec) {}

  // What `work` adds. Parameters: CostOf.
  WorkCost Add(const Work& work, std::span<const int32_t> cached_tokens = {});

 private:
  const spec::ModelSpec& spec_;
  absl::flat_hash_set<BlockHash> seen_;
};

// What `sequence` costs when its first `begin` tokens are not computed: CostOf is a sum of these.
double FlopsOf(const spec::ModelSpec& spec, const Sequence& sequence, int64_t begin);

// How many of the first `held_tokens` tokens of `sequence` a rank that holds them need not compute:
// whole blocks, up to the first position whose hidden state is wanted.
int32_t SkippableTokens(const Sequence& sequence, int32_t held_tokens);

}  // namespace zp::protocol
