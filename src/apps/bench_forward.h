// `zeroprefill bench forward`: forward passes over random prompts that share nothing, against the
// peak measured in the same run.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchForwardCommand(CLI::App& bench);

}  // namespace zp::apps
