// `zeroprefill score`: answers the questions of a JSONL file without a server.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddScoreCommand(CLI::App& app);

}  // namespace zp::apps
