// The peer source over UCX: one-sided reads by RDMA, emulated by UCX over TCP.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "fabric/byte_source.h"

namespace zp::fabric {

// As OpenPeerSource.
absl::StatusOr<std::unique_ptr<ByteSource>> MakeUcxPeerSource(const std::string& advertisement,
                                                              int32_t depth);

}  // namespace zp::fabric
