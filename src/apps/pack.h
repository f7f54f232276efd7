// `zeroprefill pack`: a checkpoint as a packed directory, once, so that its experts can be read as
// they are.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddPackCommand(CLI::App& app);

}  // namespace zp::apps
