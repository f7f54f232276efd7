#include "scheduler/token_blocks.h"

#include <algorithm>
#include <iterator>

#include "absl/hash/hash.h"
#include "absl/types/span.h"

namespace zp::scheduler {

std::vector<TokenBlock> CutIntoBlocks(const protocol::Sequence& sequence) {
  const auto token_count = static_cast<int64_t>(sequence.tokens.size());
  std::vector<TokenBlock> blocks;
  blocks.reserve((token_count + kBlockTokens - 1) / kBlockTokens);
  uint64_t chain_hash = 0;
  for (int64_t begin = 0; begin < token_count; begin += kBlockTokens) {
    const int64_t size = std::min(kBlockTokens, token_count - begin);
    chain_hash =
        absl::HashOf(chain_hash, absl::MakeConstSpan(sequence.tokens).subspan(begin, size));
    blocks.push_back({.chain_hash = chain_hash, .token_count = static_cast<int32_t>(size)});
  }
  return blocks;
}

int64_t CountTokens(const std::vector<TokenBlock>& blocks) {
  int64_t token_count = 0;
  for (const TokenBlock& block : blocks) {
    token_count += block.token_count;
  }
  return token_count;
}

std::vector<TokenBlock> DistinctTokens::FindNew(const std::vector<TokenBlock>& blocks) const {
  std::vector<TokenBlock> found;
  std::copy_if(
      blocks.begin(), blocks.end(), std::back_inserter(found), [this](const TokenBlock& block) {
        return !seen_.contains(block.chain_hash);
      });
  return found;
}

void DistinctTokens::Add(const std::vector<TokenBlock>& blocks) {
  for (const TokenBlock& block : blocks) {
    if (seen_.insert(block.chain_hash).second) {
      count_ += block.token_count;
    }
  }
}

}  // namespace zp::scheduler
