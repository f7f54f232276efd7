// The peer source over TCP: received straight into the destinations, by the thread that polls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "fabric/byte_source.h"

namespace zp::fabric {

// As OpenPeerSource.
absl::StatusOr<std::unique_ptr<ByteSource>> MakeTcpPeerSource(const std::string& advertisement,
                                                              int32_t depth);

}  // namespace zp::fabric
