// `zeroprefill bench routing`: a trace through each routing policy, on real ranks of this machine
// or on many virtual ones.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchRoutingCommand(CLI::App& bench);

}  // namespace zp::apps
