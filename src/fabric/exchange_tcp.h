// The exchange over a mesh of TCP connections (exchange_mesh.h): one poll loop sends and receives
// at once, straight from and to the caller's memory.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "fabric/descriptor.h"
#include "fabric/exchange.h"

namespace zp::fabric {

// `sockets` as ConnectMesh gives them. `time_out`: for so long nothing may move before a step is
// given up; longer than the slowest rank computes between two steps.
std::unique_ptr<Exchange> MakeTcpExchange(std::vector<Descriptor> sockets,
                                          int32_t rank,
                                          std::chrono::milliseconds time_out);

}  // namespace zp::fabric
