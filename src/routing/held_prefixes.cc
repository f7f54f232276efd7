#include "routing/held_prefixes.h"

#include <algorithm>
#include <bit>

namespace zp::routing {
namespace {

// Far enough ahead for a cache miss to be over when its block is asked for.
constexpr int32_t kPrefetchBlocks = 8;

}  // namespace

void HeldPrefixes::Look(const PrefixIndex& index,
                        const TokenPrice& price,
                        const WorkProfile& work,
                        int32_t slot_count) {
  saved_.assign(slot_count, {});
  masks_.resize(work.blocks.size());
  for (int32_t group = 0; group < index.group_count(); ++group) {
    LookAtGroup(index, price, work, group);
  }
}

void HeldPrefixes::LookAtGroup(const PrefixIndex& index,
                               const TokenPrice& price,
                               const WorkProfile& work,
                               int32_t group) {
  const auto prefetch = [&](int32_t block) {
    if (block < std::ssize(work.blocks)) {
      index.Prefetch(group, work.blocks[block]);
    }
  };
  for (const SequenceProfile& sequence : work.sequences) {
    PrefixIndex::Mask holders =
        sequence.parent_block < 0 ? ~PrefixIndex::Mask{0} : masks_[sequence.parent_block];
    const int32_t end = sequence.first_block + sequence.block_count;
    for (int32_t block = 0; block < kPrefetchBlocks && holders != 0; ++block) {
      prefetch(sequence.first_block + block);
    }
    int32_t block = sequence.first_block;
    for (; block < end && holders != 0; ++block) {
      prefetch(block + kPrefetchBlocks);
      const PrefixIndex::Mask still = holders & index.Holders(group, work.blocks[block]);
      const int32_t held_blocks = sequence.shared_blocks + block - sequence.first_block;
      AddSaved(price, sequence, holders & ~still, held_blocks, group);
      holders = masks_[block] = still;
    }
    std::fill(masks_.begin() + block, masks_.begin() + end, PrefixIndex::Mask{0});
    AddSaved(price, sequence, holders, sequence.shared_blocks + sequence.block_count, group);
  }
}

// `ranks` hold exactly the first `held_blocks` blocks of the sequence. What it shares with an
// earlier one of the work is saved already.
void HeldPrefixes::AddSaved(const TokenPrice& price,
                            const SequenceProfile& sequence,
                            PrefixIndex::Mask ranks,
                            int32_t held_blocks,
                            int32_t group) {
  const int32_t shared_tokens = sequence.shared_blocks * protocol::kBlockTokens;
  const int32_t held_tokens =
      std::min(held_blocks * protocol::kBlockTokens, sequence.skippable_tokens);
  if (held_tokens <= shared_tokens) {
    return;
  }
  const double flops = price.FlopsOfFirst(held_tokens) - price.FlopsOfFirst(shared_tokens);
  for (; ranks != 0; ranks &= ranks - 1) {
    const RankSlot slot = group * PrefixIndex::kGroupRanks + std::countr_zero(ranks);
    if (slot < std::ssize(saved_)) {
      saved_[slot].tokens += held_tokens - shared_tokens;
      saved_[slot].flops += flops;
    }
  }
}

}  // namespace zp::routing
