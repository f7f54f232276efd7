// Builds the trie of a batch: sequences that begin with the same tokens share those tokens' rows.
//
// The sequences are sorted; each adds only the tokens that its predecessor lacks. In sorted order
// the predecessor shares at least as long a prefix as any other earlier sequence, so every distinct
// prefix becomes exactly one row. K/V lie in blocks of 16 positions: whole blocks of a shared
// prefix are shared too, the rest of a shared prefix that ends inside a block is written into each
// heir's own block as well.
//
// Thread safety: pure function.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/token_batch.h"
#include "protocol/work.h"

namespace zp::engine {

struct TokenTrie {
  model::TokenBatch batch;  // asked_rows is left empty

  // rows_of[i][p]: the row of token p of sequence i, in the order the sequences were given.
  std::vector<std::vector<int64_t>> rows_of;
  // The rows that sequence i brought: its tokens from shared_count[i] on.
  std::vector<int32_t> shared_counts;
};

// REQUIRES: no sequence is empty.
TokenTrie BuildTokenTrie(std::span<const protocol::Sequence* const> sequences);

}  // namespace zp::engine
