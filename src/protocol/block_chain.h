// Names for prefixes: the hash of a block of 16 tokens and of all that came before it.
//
// Router, prefix cache and scheduler cut sequences at the same places and call a prefix by the same
// name, so that what a cache reports is what the router looks up. A name covers the whole prefix
// and the salt of whoever may share it. Hashes only: a cache compares tokens before it believes
// one.
//
// Thread safety: const use from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/checksum.h"
#include "spec/model_spec.h"

namespace zp::protocol {

// What prefixes are shared in, at absolute positions.
inline constexpr int32_t kBlockTokens = 16;

using BlockHash = base::Hash128;

class BlockHasher {
 public:
  // Hosts that exchange names use one key.
  explicit BlockHasher(uint64_t key) : key_(key) {}

  uint64_t key() const { return key_; }

  // Before the first block. Works with different salts have no prefix in common.
  BlockHash Root(std::string_view salt) const;
  // `tokens`: of one block; fewer than kBlockTokens only at a sequence's end.
  BlockHash Next(const BlockHash& parent, std::span<const spec::TokenId> tokens) const;

  // Of the whole blocks of a sequence, first to last; what is left of a last block has no name.
  std::vector<BlockHash> Chain(std::string_view salt, std::span<const spec::TokenId> tokens) const;

 private:
  const uint64_t key_;
};

}  // namespace zp::protocol
