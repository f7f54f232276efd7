// Builds the trie of a batch: sequences that begin with the same tokens share those tokens' rows.
//
// The sequences are sorted; each adds only the tokens that its predecessor lacks. In sorted order
// the predecessor shares at least as long a prefix as any other earlier sequence, so every distinct
// prefix becomes at most one row. K/V lie in blocks of 16 positions: whole blocks of a shared
// prefix are shared too, the rest of a shared prefix that ends inside a block is written into each
// heir's own block as well.
//
// Only sequences of one group share rows: what a group costs tells nothing of the others' tokens.
//
// A sequence whose beginning is held from earlier passes needs rows from some position on only. A
// prefix is computed if one sequence needs it, by the first that does, for all others.
//
// Thread safety: pure function.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/token_batch.h"
#include "protocol/work.h"

namespace zp::engine {

// What is known of the beginning of a sequence. The default: nothing.
struct KeptPrefix {
  // Its first blocks, as indices into the kept blocks. Sequences that differ may share a block if
  // they are the same up to its end.
  std::span<const int32_t> path = {};
  // So many of them hold K and V already; the pass writes the others.
  int32_t held_count = 0;
  // Rows are needed from here on. A multiple of 16, at most 16 * held_count, less than the length.
  int32_t needed_begin = 0;
};

// Consecutive rows.
struct RowRun {
  int32_t position_begin = 0;
  int32_t count = 0;
};

struct TokenTrie {
  model::TokenBatch batch;  // asked_rows is left empty

  // What a sequence brought, which is all that its predecessors in sorted order lack.
  struct Share {
    std::vector<RowRun> runs;
    int64_t row_count = 0;     // of the runs
    int64_t cached_count = 0;  // tokens that are held and that no sequence of the batch needed
  };

  // rows_of[i][p]: the row of token p of sequence i, in the order the sequences were given;
  // kNoRow for what is before needed_begin and was not computed for somebody else before.
  static constexpr int64_t kNoRow = -1;
  std::vector<std::vector<int64_t>> rows_of;
  std::vector<Share> shares;  // [sequence]
};

// REQUIRES: no sequence is empty; `groups` (empty: all are of one) and `kept` are empty or have one
// element per sequence; a kept block belongs to one group.
TokenTrie BuildTokenTrie(std::span<const protocol::Sequence* const> sequences,
                         std::span<const int32_t> groups = {},
                         std::span<std::byte* const> kept_blocks = {},
                         std::span<const KeptPrefix> kept = {});

}  // namespace zp::engine
