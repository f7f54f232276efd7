// `zeroprefill bench fabric`: how fast weights move, from peers and from files, and for how much
// CPU.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchFabricCommand(CLI::App& bench);

}  // namespace zp::apps
