// `zeroprefill bench stream`: how much of its speed a model keeps that is larger than its memory.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchStreamCommand(CLI::App& bench);

}  // namespace zp::apps
