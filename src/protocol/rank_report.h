// What a rank tells whoever brings it work, after each pass: how fast it is and which prefixes it
// holds. The router knows nothing but this and its own ledger.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "protocol/block_chain.h"

namespace zp::protocol {

// Changes of a rank's prefix cache, in the order in which they happened: what is removed is removed
// before what is stored.
struct CacheEvents {
  bool is_cleared = false;  // all that was held before is gone; first of all
  std::vector<BlockHash> removed = {};
  std::vector<BlockHash> stored = {};

  bool empty() const { return !is_cleared && removed.empty() && stored.empty(); }
};

// Makes of what was held before the events what is held after them.
inline void Apply(const CacheEvents& events, absl::flat_hash_set<BlockHash>& held) {
  if (events.is_cleared) {
    held.clear();
  }
  for (const BlockHash& block : events.removed) {
    held.erase(block);
  }
  held.insert(events.stored.begin(), events.stored.end());
}

struct RankReport {
  // True FLOPs a second while passes ran, a moving average; 0: not measured yet.
  double flops_per_s = 0;
  // The same without what passes waited for weights; 0: as flops_per_s.
  double compute_flops_per_s = 0;
  // T* as a whole pass: true FLOPs, all layers together, at which the compute of a layer covers the
  // gather of the next bank; 0 where nothing is gathered.
  double saturation_flops = 0;
  // T* in tokens, the same.
  double saturation_tokens = 0;
  CacheEvents cache = {};
};

// Called on the rank's serving thread after each pass, before the works of that pass are answered.
// Must not block.
using OnRankReport = std::function<void(const RankReport&)>;

}  // namespace zp::protocol
