// A model directory, loaded and ready to answer in this process: what `serve` and `score` stand on.
#pragma once

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "base/status.h"
#include "engine/engine.h"
#include "gateway/served_model.h"
#include "gateway/service.h"
#include "scheduler/scheduler.h"
#include "text/tokenizer.h"

namespace zp::apps {

struct LocalModelOptions {
  std::string directory;
  std::string served_model_name;  // empty: the directory's name
  std::string dtype = "bf16";
  int threads = 0;  // 0: one per core
  scheduler::SchedulerOptions scheduler;
};

// --model, --dtype, --threads, ... on a subcommand.
void AddLocalModelFlags(CLI::App& command, LocalModelOptions& options);

// Thread safety: see Service and Scheduler.
class LocalModel {
 public:
  static absl::StatusOr<std::unique_ptr<LocalModel>> Load(const LocalModelOptions& options);

  gateway::Service& service() { return *service_; }
  scheduler::Scheduler& scheduler() { return *scheduler_; }
  const gateway::ServedModel& served_model() const { return *served_model_; }
  const engine::Engine& engine() const { return *engine_; }

 private:
  // In the order of who uses whom: the last is destroyed first.
  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<gateway::ServedModel> served_model_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::unique_ptr<gateway::Service> service_;
};

}  // namespace zp::apps
