// The all-to-all of the wind tunnel over links that cost no core: a message lies where its sender
// lent it, its receiver copies it while it is on its way, and may use it when the links say that it
// has come (tunnel_shared_links.h).
//
// It is as good as we can make one: a message leaves at once, whether or not its receiver is there
// yet; all to different receivers, each rank beginning with its next neighbour, so that ranks in
// step never meet at one receiver; the copies hide behind the links; whoever waits sleeps.
//
// Thread safety, errors: fabric/exchange.h. A rank is lost when its exchange is destroyed or its
// process ends. Ownership: memory and links outlive it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "apps/tunnel_shared_links.h"
#include "base/status.h"
#include "fabric/exchange.h"

namespace zp::apps {

size_t SharedExchangeBytes(int32_t rank_count);

// `memory`: SharedExchangeBytes(rank_count) that all ranks map, zero before the first comes and
// used for one exchange. Returns when all ranks have come. Ranks may be threads.
// Errors: DeadlineExceeded naming a rank that has not come.
absl::StatusOr<std::unique_ptr<fabric::Exchange>> JoinSharedExchange(
    std::span<std::byte> memory,
    SharedLinks& links,
    int32_t rank,
    int32_t rank_count,
    std::chrono::milliseconds time_out);

}  // namespace zp::apps
