#include "fabric/memory_server.h"

#include <set>

#include "base/check.h"
#include "fabric/tcp_memory_server.h"
#include "fabric/ucx_memory_server.h"
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
  switch (options.transport) {
    case PeerTransport::kTcp:
      return MakeTcpMemoryServer(regions, options);
    case PeerTransport::kUcx:
      return MakeUcxMemoryServer(regions, options);
  }
  ZP_CHECK(false) << "transport " << static_cast<int>(options.transport);
  return nullptr;
}

}  // namespace zp::fabric
