// The one binary: subcommands that compose the rooms below.
#include "CLI/CLI.hpp"
#include "apps/bench.h"
#include "apps/command.h"
#include "apps/demo.h"
#include "apps/inspect.h"
#include "apps/pack.h"
#include "apps/score.h"
#include "apps/serve.h"
#include "apps/synth.h"
#include "base/logging.h"

int main(int argc, char** argv) {
  zp::base::SetUpLogging();
  CLI::App app("ZeroPrefill: prefill-only serving of Mixture-of-Experts language models");
  app.require_subcommand(1);
  app.failure_message(zp::apps::CommandLineProblem);
  zp::apps::AddBenchCommand(app);
  zp::apps::AddDemoCommand(app);
  zp::apps::AddInspectCommand(app);
  zp::apps::AddPackCommand(app);
  zp::apps::AddScoreCommand(app);
  zp::apps::AddServeCommand(app);
  zp::apps::AddSynthCommand(app);
  zp::apps::AddWorkerCommand(app);
  CLI11_PARSE(app, argc, argv);
  return 0;
}
