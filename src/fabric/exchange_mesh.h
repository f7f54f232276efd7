// A TCP connection between every two ranks.
//
// Each rank listens at its address and connects to the ranks below it; the others come to it.
//
// Thread safety: free functions, no shared state. Blocking, within the time-out.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "fabric/descriptor.h"

namespace zp::fabric {

struct RankAddress {
  std::string host;   // numeric
  uint16_t port = 0;  // 0: where this rank listens, any that is free (PortOf tells which)
};

// Errors: InvalidArgument for no numeric address, else what the system says.
absl::StatusOr<Descriptor> ListenForRanks(const RankAddress& address);

// One connected, non-blocking socket for each rank (none for this one). `listener` is this rank's;
// ranks may start in any order. Errors: DeadlineExceeded naming a rank that has not come.
absl::StatusOr<std::vector<Descriptor>> ConnectMesh(const Descriptor& listener,
                                                    int32_t rank,
                                                    std::span<const RankAddress> addresses,
                                                    std::chrono::milliseconds time_out);

}  // namespace zp::fabric
