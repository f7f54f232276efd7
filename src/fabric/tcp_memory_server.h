// The memory server over TCP.
#pragma once

#include <memory>
#include <span>

#include "base/status.h"
#include "fabric/memory_server.h"

namespace zp::fabric {

// As ServeMemory.
absl::StatusOr<std::unique_ptr<MemoryServer>> MakeTcpMemoryServer(
    std::span<const MemoryRegion> regions, const MemoryServerOptions& options);

}  // namespace zp::fabric
