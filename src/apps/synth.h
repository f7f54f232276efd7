// `zeroprefill synth`: writes a random checkpoint of a given shape, for benchmarks and tests.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddSynthCommand(CLI::App& app);

}  // namespace zp::apps
