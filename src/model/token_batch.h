// What a forward pass runs over: a trie of tokens, flattened to one row per distinct token.
//
// Rows stand in an order in which every token comes after its ancestors, so that a pass may go
// through them in chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/kernels.h"
#include "spec/model_spec.h"

namespace zp::model {

// Consecutive rows of one path from the root: `path` lists the K/V blocks of positions 0 .. its
// last row.
struct PathSegment {
  int64_t row_begin = 0;
  int32_t row_count = 0;
  int32_t position_begin = 0;
  std::vector<ops::KvBlockId> path;
};

struct TokenBatch {
  std::vector<spec::TokenId> tokens;    // [row]
  std::vector<int32_t> positions;       // [row]
  std::vector<PathSegment> segments;    // rising row_begin, together exactly all rows
  std::vector<ops::KvWrite> kv_writes;  // rising row; a row whose K and V are kept has none
  // Blocks 0 .. kept_blocks.size() - 1 are kept beyond the pass, all layers of them: K and V of
  // block b in layer l lie at kept_blocks[b] + l * kv_block_bytes. The others last for a layer.
  std::vector<std::byte*> kept_blocks;
  std::vector<ops::KvBlockId> ragged_blocks;  // blocks that kv_writes fills only in part
  int32_t block_count = 0;                    // of both kinds
  std::vector<int64_t> asked_rows;            // rising: rows whose final hidden state is wanted

  int64_t row_count() const { return static_cast<int64_t>(tokens.size()); }
};

}  // namespace zp::model
