#include "protocol/work_cost.h"

#include <algorithm>

#include "spec/flops.h"

namespace zp::protocol {
namespace {

// Before it nothing is asked of the sequence: rows rise, and pooling over all wants every token.
int32_t FirstAskedPosition(const Sequence& sequence) {
  if (sequence.pooling == Pooling::kMean) {
    return 0;
  }
  const auto last = static_cast<int32_t>(sequence.tokens.size()) - 1;
  return sequence.rows.empty() ? last : std::min(last, sequence.rows.front().position);
}

// The tokens from `begin` on.
void AddSequence(const spec::ModelSpec& spec,
                 const Sequence& sequence,
                 int64_t begin,
                 spec::PassShape& shape) {
  const auto length = static_cast<int64_t>(sequence.tokens.size());
  shape.token_count += length - begin;
  shape.attention_flops += spec::AttentionFlops(spec, length - begin, begin);
  for (const RowAsk& row : sequence.rows) {
    shape.asked_attention_flops += spec::AttentionFlops(spec, 1, row.position);
    shape.full_vocabulary_rows += row.full_vocabulary ? 1 : 0;
    shape.label_columns += row.full_vocabulary ? 0 : static_cast<int64_t>(row.columns.size());
  }
  shape.asked_token_count += static_cast<int64_t>(sequence.rows.size());
  if (sequence.pooling == Pooling::kMean) {
    shape.asked_token_count += length;
    shape.asked_attention_flops += spec::AttentionFlops(spec, length, 0);
  } else if (sequence.pooling == Pooling::kLastToken) {
    shape.asked_token_count += 1;
    shape.asked_attention_flops += spec::AttentionFlops(spec, 1, length - 1);
  }
}

}  // namespace

int32_t SkippableTokens(const Sequence& sequence, int32_t held_tokens) {
  return std::min(held_tokens, FirstAskedPosition(sequence)) / kBlockTokens * kBlockTokens;
}

double FlopsOf(const spec::ModelSpec& spec, const Sequence& sequence, int64_t begin) {
  spec::PassShape shape;
  AddSequence(spec, sequence, begin, shape);
  return spec::PassFlops(spec, shape);
}

WorkCost CostOf(const spec::ModelSpec& spec,
                const Work& work,
                std::span<const int32_t> cached_tokens) {
  return PassCost(spec).Add(work, cached_tokens);
}

WorkCost CostFrom(const spec::ModelSpec& spec, const Work& work, std::span<const int32_t> begins) {
  spec::PassShape shape;
  for (size_t i = 0; i < work.sequences.size(); ++i) {
    AddSequence(spec, work.sequences[i], begins[i], shape);
  }
  return {.tokens = shape.token_count, .flops = spec::PassFlops(spec, shape)};
}

WorkCost PassCost::Add(const Work& work, std::span<const int32_t> cached_tokens) {
  const BlockHasher hasher(/*key=*/0);
  std::vector<int32_t> begins;
  for (size_t i = 0; i < work.sequences.size(); ++i) {
    const Sequence& sequence = work.sequences[i];
    int32_t shared_tokens = 0;
    for (const BlockHash& block : hasher.Chain(work.cache_salt, sequence.tokens)) {
      shared_tokens += seen_.insert(block).second ? 0 : kBlockTokens;
    }
    const int32_t held_tokens =
        cached_tokens.empty() ? 0 : SkippableTokens(sequence, cached_tokens[i]);
    begins.push_back(std::max(shared_tokens, held_tokens));
  }
  return CostFrom(spec_, work, begins);
}

}  // namespace zp::protocol
