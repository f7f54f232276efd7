// Who pays for which row of a pass: each row once, so that the sum over all sequences is what the
// pass really computes.
//
// Thread safety: none; one object per pass.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/token_trie.h"
#include "protocol/work.h"
#include "spec/flops.h"
#include "spec/model_spec.h"

namespace zp::engine {

// The positions of a sequence whose hidden states are pooled.
std::vector<int32_t> PooledPositions(const protocol::Sequence& sequence);

class RowCharges {
 public:
  RowCharges(const spec::ModelSpec& spec, int64_t row_count);

  // What `sequence` adds to the pass. `rows` are those of its tokens; it brought those of `runs`.
  spec::PassShape ShapeOf(const protocol::Sequence& sequence,
                          std::span<const int64_t> rows,
                          std::span<const RowRun> runs);

 private:
  void ChargeAsked(int64_t row, int32_t position, spec::PassShape& shape);

  const spec::ModelSpec& spec_;
  std::vector<uint8_t> asked_;            // [row] 1 when its last layer is paid for
  std::vector<uint8_t> full_vocabulary_;  // [row] 1 when its logits are paid for
};

}  // namespace zp::engine
