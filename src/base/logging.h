// The one logger of the process (spdlog, to standard error). Use as log::info("loaded {} layers",
// count).
#pragma once

#include "spdlog/spdlog.h"

namespace zp::base {

namespace log = ::spdlog;

// Once, at the start of main: standard error, time stamps with milliseconds; level from "trace" to
// "error".
void SetUpLogging(const char* level);

}  // namespace zp::base
