// The memory server over UCX: registers the regions; where the transport is one-sided (RDMA, shared
// memory) it has nothing to do after a peer has connected.
//
// `address` of the options only names it in logs: UCX has devices of its own (UCX_NET_DEVICES).
#pragma once

#include <memory>
#include <span>

#include "base/status.h"
#include "fabric/memory_server.h"

namespace zp::fabric {

// As ServeMemory.
absl::StatusOr<std::unique_ptr<MemoryServer>> MakeUcxMemoryServer(
    std::span<const MemoryRegion> regions, const MemoryServerOptions& options);

}  // namespace zp::fabric
