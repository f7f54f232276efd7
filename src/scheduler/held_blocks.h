// Which prefixes the engine's cache holds, as its reports said so far.
//
// Thread safety: any thread.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>

#include "absl/container/flat_hash_set.h"
#include "protocol/rank_report.h"
#include "scheduler/token_blocks.h"

namespace zp::scheduler {

class HeldBlocks {
 public:
  void Apply(const protocol::CacheEvents& events);
  bool Contains(const protocol::BlockHash& name) const;
  // Of a sequence's blocks, how many from the first on are held.
  int64_t CountLeading(std::span<const TokenBlock> blocks) const;

 private:
  mutable std::mutex mutex_;
  absl::flat_hash_set<protocol::BlockHash> held_;
};

}  // namespace zp::scheduler
