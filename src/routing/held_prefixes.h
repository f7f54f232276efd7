// What each rank saves of one work: the walk of the work's blocks through the index.
//
// Thread safety: none. An object keeps its memory from work to work.
#pragma once

#include <cstdint>
#include <vector>

#include "routing/prefix_index.h"
#include "routing/work_profile.h"

namespace zp::routing {

class HeldPrefixes {
 public:
  // After it, `tokens(slot)` and `flops(slot)` are what a rank that holds what the index says need
  // not compute of `work`: together with the cost for a rank that holds nothing they are
  // protocol::CostOf.
  void Look(const PrefixIndex& index,
            const TokenPrice& price,
            const WorkProfile& work,
            int32_t slot_count);

  int64_t tokens(RankSlot slot) const { return saved_[slot].tokens; }
  double flops(RankSlot slot) const { return saved_[slot].flops; }

 private:
  struct Saved {
    int64_t tokens = 0;
    double flops = 0;
  };

  void LookAtGroup(const PrefixIndex& index,
                   const TokenPrice& price,
                   const WorkProfile& work,
                   int32_t group);
  void AddSaved(const TokenPrice& price,
                const SequenceProfile& sequence,
                PrefixIndex::Mask ranks,
                int32_t held_blocks,
                int32_t group);

  std::vector<PrefixIndex::Mask> masks_;  // [blocks]: who holds it and all before it
  std::vector<Saved> saved_;              // by slot
};

}  // namespace zp::routing
