#include "protocol/block_chain.h"

#include <array>
#include <cstddef>
#include <cstring>

#include "base/check.h"

namespace zp::protocol {

BlockHash BlockHasher::Root(std::string_view salt) const {
  return base::KeyedHash(key_, std::as_bytes(std::span(salt)));
}

BlockHash BlockHasher::Next(const BlockHash& parent, std::span<const spec::TokenId> tokens) const {
  ZP_CHECK(!tokens.empty() && tokens.size() <= kBlockTokens) << tokens.size();
  std::array<std::byte, sizeof(BlockHash) + kBlockTokens * sizeof(spec::TokenId)> bytes;
  std::memcpy(bytes.data(), &parent, sizeof(parent));
  std::memcpy(bytes.data() + sizeof(parent), tokens.data(), tokens.size_bytes());
  return base::KeyedHash(key_, std::span(bytes).first(sizeof(parent) + tokens.size_bytes()));
}

std::vector<BlockHash> BlockHasher::Chain(std::string_view salt,
                                          std::span<const spec::TokenId> tokens) const {
  std::vector<BlockHash> chain;
  chain.reserve(tokens.size() / kBlockTokens);
  BlockHash last = Root(salt);
  for (; tokens.size() >= kBlockTokens; tokens = tokens.subspan(kBlockTokens)) {
    last = Next(last, tokens.first(kBlockTokens));
    chain.push_back(last);
  }
  return chain;
}

}  // namespace zp::protocol
