#include "scheduler/token_blocks.h"

#include <algorithm>

namespace zp::scheduler {

using protocol::BlockHash;
using protocol::kBlockTokens;

std::vector<TokenBlock> CutIntoBlocks(const protocol::BlockHasher& hasher,
                                      std::string_view salt,
                                      const protocol::Sequence& sequence) {
  const std::span<const spec::TokenId> tokens = sequence.tokens;
  std::vector<TokenBlock> blocks;
  blocks.reserve((tokens.size() + kBlockTokens - 1) / kBlockTokens);
  BlockHash name = hasher.Root(salt);
  for (size_t begin = 0; begin < tokens.size(); begin += kBlockTokens) {
    const size_t count = std::min<size_t>(kBlockTokens, tokens.size() - begin);
    name = hasher.Next(name, tokens.subspan(begin, count));
    blocks.push_back({.name = name, .token_count = static_cast<int32_t>(count)});
  }
  return blocks;
}

int64_t CountTokens(std::span<const TokenBlock> blocks) {
  int64_t token_count = 0;
  for (const TokenBlock& block : blocks) {
    token_count += block.token_count;
  }
  return token_count;
}

int64_t DistinctTokens::CountNew(std::span<const TokenBlock> blocks) const {
  int64_t token_count = 0;
  for (const TokenBlock& block : blocks) {
    token_count += seen_.contains(block.name) ? 0 : block.token_count;
  }
  return token_count;
}

void DistinctTokens::Add(std::span<const TokenBlock> blocks) {
  for (const TokenBlock& block : blocks) {
    Add(block);
  }
}

bool DistinctTokens::Add(const TokenBlock& block) {
  const bool is_new = seen_.insert(block.name).second;
  count_ += is_new ? block.token_count : 0;
  return is_new;
}

}  // namespace zp::scheduler
