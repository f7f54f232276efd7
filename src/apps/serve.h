// `zeroprefill serve`: a model behind HTTP until it is told to end.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddServeCommand(CLI::App& app);

}  // namespace zp::apps
