// `zeroprefill bench router`: how long the router takes to choose a rank.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchRouterCommand(CLI::App& bench);

}  // namespace zp::apps
