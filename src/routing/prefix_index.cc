#include "routing/prefix_index.h"

#include <algorithm>
#include <utility>

namespace zp::routing {
namespace {

PrefixIndex::Mask BitOf(RankSlot slot) {
  return PrefixIndex::Mask{1} << (slot % PrefixIndex::kGroupRanks);
}

}  // namespace

void PrefixIndex::MakeRoom(RankSlot slot) {
  if (slot >= std::ssize(ranks_)) {
    ranks_.resize(slot + 1);
    groups_.resize(slot / kGroupRanks + 1);
  }
}

void PrefixIndex::Apply(RankSlot slot, const protocol::CacheEvents& events) {
  MakeRoom(slot);
  if (events.is_cleared) {
    Clear(slot);
  }
  for (const protocol::BlockHash& block : events.removed) {
    Remove(slot, block);
  }
  for (const protocol::BlockHash& block : events.stored) {
    Store(slot, block);
  }
  CompactLog(slot);
}

void PrefixIndex::Store(RankSlot slot, const protocol::BlockHash& block) {
  Entry& entry = groups_[slot / kGroupRanks][block];
  if ((entry.held & BitOf(slot)) == 0) {
    entry.held |= BitOf(slot);
    ++ranks_[slot].held_count;
    ranks_[slot].log.push_back(block);
  }
}

void PrefixIndex::Remove(RankSlot slot, const protocol::BlockHash& block) {
  Group& group = groups_[slot / kGroupRanks];
  const auto found = group.find(block);
  if (found == group.end() || (found->second.held & BitOf(slot)) == 0) {
    return;
  }
  found->second.held &= ~BitOf(slot);
  --ranks_[slot].held_count;
  if (found->second.held == 0 && found->second.expected == 0) {
    group.erase(found);
  }
}

// The log may hold a name twice, or names that are removed: never more than as many again.
void PrefixIndex::CompactLog(RankSlot slot) {
  constexpr int64_t kSmallLog = 1024;
  Rank& rank = ranks_[slot];
  if (std::ssize(rank.log) <= 2 * rank.held_count + kSmallLog) {
    return;
  }
  Group& group = groups_[slot / kGroupRanks];
  absl::flat_hash_map<protocol::BlockHash, bool, NameHash> seen;
  std::erase_if(rank.log, [&](const protocol::BlockHash& block) {
    const auto found = group.find(block);
    return found == group.end() || (found->second.held & BitOf(slot)) == 0 ||
           !seen.emplace(block, true).second;
  });
}

void PrefixIndex::Clear(RankSlot slot) {
  if (slot >= std::ssize(ranks_)) {
    return;
  }
  const std::vector<protocol::BlockHash> log = std::exchange(ranks_[slot].log, {});
  for (const protocol::BlockHash& block : log) {
    Remove(slot, block);
  }
}

void PrefixIndex::Expect(RankSlot slot, std::span<const protocol::BlockHash> blocks) {
  MakeRoom(slot);
  Group& group = groups_[slot / kGroupRanks];
  for (const protocol::BlockHash& block : blocks) {
    Entry& entry = group[block];
    if ((entry.expected & BitOf(slot)) != 0) {
      ++ranks_[slot].more_expected[block];
    }
    entry.expected |= BitOf(slot);
  }
}

void PrefixIndex::DropExpected(RankSlot slot, std::span<const protocol::BlockHash> blocks) {
  Group& group = groups_[slot / kGroupRanks];
  auto& more_expected = ranks_[slot].more_expected;
  for (const protocol::BlockHash& block : blocks) {
    if (const auto more = more_expected.find(block); more != more_expected.end()) {
      if (--more->second == 0) {
        more_expected.erase(more);
      }
      continue;
    }
    const auto found = group.find(block);
    if (found == group.end()) {
      continue;
    }
    found->second.expected &= ~BitOf(slot);
    if (found->second.held == 0 && found->second.expected == 0) {
      group.erase(found);
    }
  }
}

PrefixIndex::Mask PrefixIndex::Holders(int32_t group, const protocol::BlockHash& block) const {
  const auto found = groups_[group].find(block);
  return found == groups_[group].end() ? 0 : found->second.held | found->second.expected;
}

bool PrefixIndex::IsHeld(RankSlot slot, const protocol::BlockHash& block) const {
  if (slot >= std::ssize(ranks_)) {
    return false;
  }
  const Group& group = groups_[slot / kGroupRanks];
  const auto found = group.find(block);
  return found != group.end() && (found->second.held & BitOf(slot)) != 0;
}

int64_t PrefixIndex::held_block_count(RankSlot slot) const {
  return slot < std::ssize(ranks_) ? ranks_[slot].held_count : 0;
}

int64_t PrefixIndex::block_count() const {
  int64_t count = 0;
  for (const Group& group : groups_) {
    count += std::ssize(group);
  }
  return count;
}

}  // namespace zp::routing
