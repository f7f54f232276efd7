// `zeroprefill bench cache`: what the prefix cache saves when prompts come back, and what it costs
// when they do not.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchCacheCommand(CLI::App& bench);

}  // namespace zp::apps
