// The two names of a rank: what the world calls it, and where the router keeps it.
#pragma once

#include <cstdint>

namespace zp::routing {

using RankId = int32_t;  // given by whoever adds the rank

// Dense, so that a set of ranks is a few words of bits. A slot is given to another rank only after
// the last work of the one before has been released.
using RankSlot = int32_t;

inline constexpr int32_t kMaxRanks = 1024;

}  // namespace zp::routing
