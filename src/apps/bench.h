// `zeroprefill bench ...`: every speed figure in docs/performance.md comes from one of these.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchCommand(CLI::App& app);

}  // namespace zp::apps
