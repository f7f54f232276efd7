// Which rank holds which block: learnt from the ranks' own cache events, so that it says what is
// and not what was hoped for.
//
// Beside the held blocks stand the *expected* ones: what works on their way to a rank will bring
// there. They count as held, so that siblings that arrive together are placed together before the
// first event comes, and go when their work is answered or lost.
//
// Memory: one flat map of 64-bit masks per 64 ranks (33 bytes an entry, plus the table's slack)
// and a log of names per rank (16 bytes a block, at most twice what it holds).
//
// Thread safety: none; the owner (RequestRouter) guards it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "protocol/block_chain.h"
#include "protocol/rank_report.h"
#include "routing/rank_slot.h"

namespace zp::routing {

class PrefixIndex {
 public:
  // A set of ranks: bit b of mask g is slot 64 * g + b.
  using Mask = uint64_t;
  static constexpr int32_t kGroupRanks = 64;

  // In the order of the events: cleared, removed, stored. Unknown and repeated names are harmless.
  void Apply(RankSlot slot, const protocol::CacheEvents& events);
  // All that `slot` holds is gone, in time proportional to it. Expected blocks stay: each goes with
  // its work.
  void Clear(RankSlot slot);

  // A work with these blocks is on its way to `slot`. Counted: as many drops as expectations.
  void Expect(RankSlot slot, std::span<const protocol::BlockHash> blocks);
  void DropExpected(RankSlot slot, std::span<const protocol::BlockHash> blocks);

  // How many groups of ranks there are anything of; slots beyond hold nothing.
  int32_t group_count() const { return static_cast<int32_t>(groups_.size()); }
  // Brings `block` closer before Holders asks for it: at a million blocks each is a cache miss.
  void Prefetch(int32_t group, const protocol::BlockHash& block) const {
    groups_[group].prefetch(block);
  }
  // The ranks of a group that hold `block` or expect it.
  Mask Holders(int32_t group, const protocol::BlockHash& block) const;

  // Whether the rank reported it, whatever is expected.
  bool IsHeld(RankSlot slot, const protocol::BlockHash& block) const;

  int64_t held_block_count(RankSlot slot) const;
  // Entries of all groups: distinct blocks while there are at most 64 ranks.
  int64_t block_count() const;

 private:
  struct Entry {
    Mask held = 0;
    Mask expected = 0;
  };
  // Names are hashes already, and keyed.
  struct NameHash {
    size_t operator()(const protocol::BlockHash& block) const { return block.low; }
  };
  using Group = absl::flat_hash_map<protocol::BlockHash, Entry, NameHash>;

  struct Rank {
    int64_t held_count = 0;
    // Every block stored since the last compaction; some are removed by now, some named twice.
    std::vector<protocol::BlockHash> log;
    // How often a block is expected beyond the first time.
    absl::flat_hash_map<protocol::BlockHash, int32_t, NameHash> more_expected;
  };

  void Store(RankSlot slot, const protocol::BlockHash& block);
  void Remove(RankSlot slot, const protocol::BlockHash& block);
  void CompactLog(RankSlot slot);
  void MakeRoom(RankSlot slot);

  std::vector<Group> groups_;
  std::vector<Rank> ranks_;  // by slot
};

}  // namespace zp::routing
