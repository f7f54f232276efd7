// `zeroprefill bench flops`: how well true FLOPs predict the seconds of a pass, over passes as
// unlike as requests are. Routing and batching count in FLOPs; this is what that stands on.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchFlopsCommand(CLI::App& bench);

}  // namespace zp::apps
