// `zeroprefill bench sharing`: how much of a request file is computed once and not again.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchSharingCommand(CLI::App& bench);

}  // namespace zp::apps
