// How many tokens of a batch are distinct: what the engine will compute of it, before it runs.
//
// A prefix is counted once, in blocks of 16 tokens at absolute positions, named by the hash of all
// tokens up to the block's end. Hashes only: a collision costs an estimate that is a block off,
// never a wrong answer.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "protocol/work.h"

namespace zp::scheduler {

constexpr int64_t kBlockTokens = 16;

struct TokenBlock {
  uint64_t chain_hash = 0;  // of the sequence's tokens up to this block's end
  int32_t token_count = 0;  // kBlockTokens but for a sequence's last block
};

// Distinct among themselves, since each name covers all tokens before it.
std::vector<TokenBlock> CutIntoBlocks(const protocol::Sequence& sequence);

int64_t CountTokens(const std::vector<TokenBlock>& blocks);

// A set of blocks that counts tokens.
//
// Thread safety: none.
class DistinctTokens {
 public:
  int64_t count() const { return count_; }
  // Those of `blocks`, distinct among themselves, that are not in the set.
  std::vector<TokenBlock> FindNew(const std::vector<TokenBlock>& blocks) const;
  void Add(const std::vector<TokenBlock>& blocks);

 private:
  absl::flat_hash_set<uint64_t> seen_;
  int64_t count_ = 0;
};

}  // namespace zp::scheduler
