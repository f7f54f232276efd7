// `zeroprefill bench workplane`: what it costs to bring works to a rank behind the work plane.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchWorkplaneCommand(CLI::App& bench);

}  // namespace zp::apps
