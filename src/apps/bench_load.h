// `zeroprefill bench load`: a real server over HTTP under more load than it can bear, and under
// long requests among short ones.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddBenchLoadCommand(CLI::App& bench);

}  // namespace zp::apps
