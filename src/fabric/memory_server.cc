#include "fabric/memory_server.h"

#include <set>

#include "fabric/tcp_memory_server.h"
#include "fmt/format.h"

namespace zp::fabric {

absl::StatusOr<std::unique_ptr<MemoryServer>> ServeMemory(std::span<const MemoryRegion> regions,
                                                          const MemoryServerOptions& options) {
  std::set<uint32_t> objects;
  for (const MemoryRegion& region : regions) {
    if (!objects.insert(region.object).second) {
      return absl::InvalidArgumentError(
          fmt::format("object {} has more than one region", region.object));
    }
  }
  return MakeTcpMemoryServer(regions, options);
}

}  // namespace zp::fabric
