// `zeroprefill demo`: a client that shows a running server at work. Sends a model's held-out sample
// over HTTP as many small requests at once and prints texts with their answers, the accuracy, and
// what it cost.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddDemoCommand(CLI::App& app);

}  // namespace zp::apps
