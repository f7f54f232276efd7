#include "scheduler/ahead_works.h"

#include <algorithm>
#include <vector>

namespace zp::scheduler {
namespace {

// Of the cache, what works may have in it that are computed ahead: others have their prefixes
// there.
constexpr int64_t kAheadShare = 2;

}  // namespace

AheadWorks::AheadWorks(const HeldBlocks* held, int64_t max_held_tokens)
    : held_(held), max_tokens_(max_held_tokens / kAheadShare) {}

bool AheadWorks::Follows(const WaitingEntry& entry) const {
  return held_ != nullptr && entry.work.ahead_count > 0;
}

// A block is not held without those before it.
int32_t AheadWorks::CountHeldParts(const WaitingWork& work) const {
  int32_t count = work.ahead_count;
  while (count > 0 && !held_->Contains(work.parts[count - 1].blocks.back().name)) {
    --count;
  }
  return count;
}

bool AheadWorks::IsNext(const WaitingEntry& entry, int32_t part) const {
  if (!Follows(entry)) {
    return true;
  }
  const int32_t held_parts = CountHeldParts(entry.work);
  return entry.ahead.rest_begin >= 0 ? held_parts >= entry.ahead.rest_begin : held_parts == part;
}

void AheadWorks::GoOn(WaitingEntry& entry) {
  if (!Follows(entry)) {
    return;
  }
  entry.next_part = CountHeldParts(entry.work);
  if (entry.ahead.rest_begin >= 0 || entry.next_part <= entry.ahead.last_part) {
    TakeRestFrom(entry.next_part, entry);
  }
  entry.remaining_flops = 0;
  for (auto part = static_cast<size_t>(entry.next_part); part < entry.work.parts.size(); ++part) {
    entry.remaining_flops += entry.work.parts[part].flops;
  }
}

void AheadWorks::TakeRestFrom(int32_t begin, WaitingEntry& entry) {
  std::vector<PartCost>& parts = entry.work.parts;
  PartCost& last = parts.back();
  const int32_t rest_begin =
      entry.ahead.rest_begin >= 0 ? entry.ahead.rest_begin : entry.work.ahead_count;
  for (int32_t part = rest_begin - 1; part >= begin; --part) {
    const std::vector<TokenBlock>& blocks = parts[part].blocks;
    last.blocks.insert(last.blocks.begin(), blocks.begin(), blocks.end());
    last.flops += parts[part].flops;
  }
  entry.ahead.rest_begin = std::min(begin, rest_begin);
  entry.next_part = entry.work.ahead_count;
  GiveRoomBack(entry);
}

bool AheadWorks::SetRoomApart(WaitingEntry& entry, bool is_shared, bool must_go) {
  AheadState& ahead = entry.ahead;
  if (ahead.room_tokens > 0 || entry.next_part >= entry.work.ahead_count || is_shared) {
    return true;
  }
  int64_t tokens = 0;
  for (int32_t part = 0; part < entry.work.ahead_count; ++part) {
    tokens += CountTokens(entry.work.parts[part].blocks);
  }
  if (!must_go && tokens > max_tokens_ - room_tokens_) {
    return false;
  }
  ahead.room_tokens = tokens;
  room_tokens_ += tokens;
  return true;
}

void AheadWorks::GiveRoomBack(WaitingEntry& entry) {
  room_tokens_ -= entry.ahead.room_tokens;
  entry.ahead.room_tokens = 0;
}

}  // namespace zp::scheduler
