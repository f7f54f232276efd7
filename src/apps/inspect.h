// `zeroprefill inspect PATH`: what a model is and costs, without running it.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddInspectCommand(CLI::App& app);

}  // namespace zp::apps
