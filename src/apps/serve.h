// `zeroprefill serve`: a model behind HTTP until it is told to end; with --hosts it shares the
// experts with other hosts. `zeroprefill worker`: one of those other hosts, which answers as well.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddServeCommand(CLI::App& app);
void AddWorkerCommand(CLI::App& app);

}  // namespace zp::apps
