// Which blocks the works that wait at a rank will ask its prefix cache for: what has changed since
// this was said last.
#pragma once

#include <vector>

#include "protocol/block_chain.h"

namespace zp::protocol {

// A block is named once for each work that begins to wait for it, and once more when that work
// waits no longer. What begun is counted before what ended.
struct AwaitedChanges {
  std::vector<BlockHash> begun = {};
  std::vector<BlockHash> ended = {};
};

}  // namespace zp::protocol
