// The one logger of the process (spdlog, to standard error). Use as log::info("loaded {} layers",
// count).
#pragma once

#include <string>

#include "spdlog/spdlog.h"

namespace zp::base {

namespace log = ::spdlog;

// Once, at the start of main: standard error, time stamps with milliseconds, from "info" on.
void SetUpLogging();

// From "trace" to "error".
void SetLogLevel(const std::string& level);

}  // namespace zp::base
