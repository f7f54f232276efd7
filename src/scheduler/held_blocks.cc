#include "scheduler/held_blocks.h"

namespace zp::scheduler {

void HeldBlocks::Apply(const protocol::CacheEvents& events) {
  std::lock_guard lock(mutex_);
  protocol::Apply(events, held_);
}

bool HeldBlocks::Contains(const protocol::BlockHash& name) const {
  std::lock_guard lock(mutex_);
  return held_.contains(name);
}

int64_t HeldBlocks::CountLeading(std::span<const TokenBlock> blocks) const {
  std::lock_guard lock(mutex_);
  int64_t count = 0;
  for (const TokenBlock& block : blocks) {
    if (!held_.contains(block.name)) {
      break;
    }
    ++count;
  }
  return count;
}

}  // namespace zp::scheduler
