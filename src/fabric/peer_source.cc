#include "fabric/peer_source.h"

#include "fabric/tcp_peer_source.h"
#include "fabric/ucx_peer_source.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

constexpr int32_t kMaxDepth = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> OpenPeerSource(const std::string& advertisement,
                                                           const PeerSourceOptions& options) {
  if (options.depth < 1 || options.depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        fmt::format("depth must be 1..{}, not {}", kMaxDepth, options.depth));
  }
  return advertisement.starts_with("ucx ") ? MakeUcxPeerSource(advertisement, options.depth)
                                           : MakeTcpPeerSource(advertisement, options.depth);
}

}  // namespace zp::fabric
