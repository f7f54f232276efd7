// Which prefixes are held, in which block, and which block goes when room is needed. Bookkeeping
// alone: the bytes lie in prefix_cache.h.
//
// Held blocks form a forest: a block's parent is the block before it of the same prefix, and stays
// as long as the block does. What is evicted is a leaf that nobody has pinned: of those that the
// fewest waiting works will ask for the one with the lowest priority; priority = clock at its last
// use + passes that used it x FLOPs that it saves, and the clock rises to the priority of what was
// evicted last (GreedyDual-Size-Frequency, Cherkasova 1998; all blocks have one size). So what
// works wait for is there at their turn, what is used again and again outlives what was seen once,
// what is deep outlives what is shallow, and nothing stays for ever.
//
// A name is a hash; tokens and salt are compared before a block is believed to be the one asked
// for, so that two prefixes of one name are a miss and never a wrong answer.
//
// Thread safety: none; engine thread only.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/node_hash_map.h"
#include "protocol/awaited_blocks.h"
#include "protocol/block_chain.h"
#include "protocol/rank_report.h"
#include "spec/model_spec.h"

namespace zp::kvcache {

// A place for the K and V of 16 tokens, from 0 to the capacity.
using BlockId = int32_t;
inline constexpr BlockId kNoBlock = -1;

struct BlockIndexOptions {
  int32_t capacity_blocks = 0;
  // Of the capacity, what works of one salt may take; those without a salt may take all of it.
  double salt_fraction = 1.0;
  // What having block number d of a prefix saves: first_block_flops + d * deeper_block_flops.
  double first_block_flops = 1;
  double deeper_block_flops = 0;
};

class BlockIndex {
 public:
  // REQUIRES: at least one block; 0 < salt_fraction <= 1.
  explicit BlockIndex(const BlockIndexOptions& options);

  // The blocks that hold the beginning of `tokens`, from the first on, as many as are held.
  // `chain`: the names of the whole blocks of `tokens` under `salt` (protocol::BlockHasher).
  std::vector<BlockId> Match(std::string_view salt,
                             std::span<const spec::TokenId> tokens,
                             std::span<const protocol::BlockHash> chain) const;

  // A pass uses the block: until Unpin it is not evicted. One call is one use.
  void Pin(BlockId block);
  void Unpin(BlockId block);

  // Works came that will ask for blocks, held or not, or wait no longer.
  // REQUIRES: no more ends than beginnings, of any block.
  void Await(const protocol::AwaitedChanges& changes);

  struct NewBlock {
    protocol::BlockHash name;
    BlockId parent = kNoBlock;  // kNoBlock: the first of its prefix
    std::string_view salt;
    std::span<const spec::TokenId> tokens;  // of this block
  };
  // A place for a block that is about to be computed, pinned once; nobody finds it until it is
  // published. kNoBlock if nothing is free and, with `may_evict`, nothing can go either, or if a
  // block of this name is here already. A tenant at its limit makes room itself.
  // REQUIRES: the parent is pinned.
  BlockId Reserve(const NewBlock& block, bool may_evict);
  // From now on the reserved block is held. REQUIRES: its parent is held.
  void Publish(BlockId block);
  // Gives a reserved block's place back. REQUIRES: no children.
  void Drop(BlockId block);

  // What was evicted and published since the last call.
  protocol::CacheEvents TakeEvents();

  int32_t capacity_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t held_blocks() const { return held_blocks_; }
  int64_t eviction_count() const { return eviction_count_; }

 private:
  enum class State : uint8_t { kFree, kReserved, kHeld };
  // Lowest first: how many works await it, priority, the time of the last use.
  using EvictionKey = std::tuple<int64_t, double, int64_t, BlockId>;

  // What works of one salt hold.
  struct Tenant {
    std::string salt;
    int32_t block_count = 0;
    std::set<EvictionKey> evictable;
  };

  struct Block {
    State state = State::kFree;
    protocol::BlockHash name;
    BlockId parent = kNoBlock;
    int32_t depth = 0;
    int32_t child_count = 0;
    int32_t pin_count = 0;
    int32_t use_count = 0;
    int32_t await_count = 0;
    double priority = 0;
    int64_t last_use = 0;
    Tenant* tenant = nullptr;
    spec::TokenId tokens[protocol::kBlockTokens] = {};
  };

  EvictionKey KeyOf(BlockId block) const;
  static bool IsEvictable(const Block& block);
  // Called around every change of a block: out of the order of eviction, and in again if it may go.
  void RemoveFromOrder(BlockId block);
  void AddToOrder(BlockId block);
  void SetAwaited(const protocol::BlockHash& name, int32_t count);

  bool MakeRoomFor(const Tenant& tenant, bool may_evict);
  int32_t LimitOf(const Tenant& tenant) const;
  void Evict(BlockId block);
  void Free(BlockId block);
  void LeaveTenant(Tenant& tenant);

  const BlockIndexOptions options_;
  std::vector<Block> blocks_;
  std::vector<BlockId> free_;
  absl::flat_hash_map<protocol::BlockHash, BlockId> by_name_;  // reserved and held
  absl::node_hash_map<std::string, Tenant> tenants_;           // who has blocks
  std::set<EvictionKey> evictable_;                            // of all tenants
  absl::flat_hash_map<protocol::BlockHash, int32_t> awaited_;  // by how many works
  double clock_ = 0;
  int64_t use_clock_ = 0;
  int32_t held_blocks_ = 0;
  int64_t eviction_count_ = 0;
  protocol::CacheEvents events_;
};

}  // namespace zp::kvcache
