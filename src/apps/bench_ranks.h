// `zeroprefill bench ranks`: ranks of one process that share the weights, each on its own cores:
// what they do together over what one does alone, and whether what one is fed matters to another.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchRanksCommand(CLI::App& bench);

}  // namespace zp::apps
