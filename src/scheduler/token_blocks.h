// How many tokens of a batch are distinct: what the engine will compute of it, before it runs.
//
// A prefix is counted once, in the blocks of protocol/block_chain.h. Hashes only: a collision costs
// an estimate that is a block off, never a wrong answer.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "protocol/block_chain.h"
#include "protocol/work.h"

namespace zp::scheduler {

struct TokenBlock {
  protocol::BlockHash name;  // of the sequence's tokens up to this block's end
  int32_t token_count = 0;   // kBlockTokens but for a sequence's last block
};

// All tokens of the sequence. Distinct among themselves, since each name covers all tokens before
// it.
std::vector<TokenBlock> CutIntoBlocks(const protocol::BlockHasher& hasher,
                                      std::string_view salt,
                                      const protocol::Sequence& sequence);

int64_t CountTokens(std::span<const TokenBlock> blocks);

// A set of blocks that counts tokens.
//
// Thread safety: none.
class DistinctTokens {
 public:
  int64_t count() const { return count_; }
  // How many tokens of `blocks`, distinct among themselves, are not in the set.
  int64_t CountNew(std::span<const TokenBlock> blocks) const;
  void Add(std::span<const TokenBlock> blocks);
  // Whether it is new.
  bool Add(const TokenBlock& block);

 private:
  absl::flat_hash_set<protocol::BlockHash> seen_;
  int64_t count_ = 0;
};

}  // namespace zp::scheduler
