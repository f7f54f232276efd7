// `zeroprefill bench batching`: what it costs to queue works and to form batches of them.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchBatchingCommand(CLI::App& bench);

}  // namespace zp::apps
