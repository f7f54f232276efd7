// `zeroprefill bench tunnel`: several hosts on one machine, joined by links as fast, measured by
// their compute, as those of a machine that is imitated. Gathering weights and dispatching tokens
// run on the same batches, in turn, beside the same engine with every expert in memory.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchTunnelCommand(CLI::App& bench);

}  // namespace zp::apps
