// The exchange among ranks that are threads of one process: for tests, and the measure of what
// sockets cost.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "fabric/exchange.h"

namespace zp::fabric {

// One for each rank. They share what they need; a rank is lost when its exchange is destroyed.
std::vector<std::unique_ptr<Exchange>> MakeLocalExchanges(int32_t rank_count,
                                                          std::chrono::milliseconds time_out);

}  // namespace zp::fabric
