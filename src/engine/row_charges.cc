#include "engine/row_charges.h"

#include <numeric>
#include <utility>

namespace zp::engine {

std::vector<int32_t> PooledPositions(const protocol::Sequence& sequence) {
  const auto length = static_cast<int32_t>(sequence.tokens.size());
  std::vector<int32_t> positions;
  if (sequence.pooling == protocol::Pooling::kLastToken) {
    positions.push_back(length - 1);
  } else if (sequence.pooling == protocol::Pooling::kMean) {
    positions.resize(length);
    std::iota(positions.begin(), positions.end(), 0);
  }
  return positions;
}

RowCharges::RowCharges(const spec::ModelSpec& spec, int64_t row_count)
    : spec_(spec), asked_(row_count, 0), full_vocabulary_(row_count, 0) {}

spec::PassShape RowCharges::ShapeOf(const protocol::Sequence& sequence,
                                    std::span<const int64_t> rows,
                                    std::span<const RowRun> runs) {
  spec::PassShape shape;
  for (const RowRun& run : runs) {
    shape.token_count += run.count;
    shape.attention_flops += spec::AttentionFlops(spec_, run.count, run.position_begin);
  }
  for (const protocol::RowAsk& ask : sequence.rows) {
    const int64_t row = rows[ask.position];
    ChargeAsked(row, ask.position, shape);
    if (!ask.full_vocabulary) {
      shape.label_columns += static_cast<int64_t>(ask.columns.size());
    } else if (std::exchange(full_vocabulary_[row], 1) == 0) {
      ++shape.full_vocabulary_rows;
    }
  }
  for (const int32_t position : PooledPositions(sequence)) {
    ChargeAsked(rows[position], position, shape);
  }
  return shape;
}

void RowCharges::ChargeAsked(int64_t row, int32_t position, spec::PassShape& shape) {
  if (std::exchange(asked_[row], 1) == 0) {
    ++shape.asked_token_count;
    shape.asked_attention_flops += spec::AttentionFlops(spec_, 1, position);
  }
}

}  // namespace zp::engine
