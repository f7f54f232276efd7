// A model directory, loaded and ready to answer in this process: what `serve` and `score` stand on.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "apps/cluster_seat.h"
#include "base/status.h"
#include "base/trace.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "engine/host_model.h"
#include "gateway/served_model.h"
#include "gateway/service.h"
#include "routing/work_router.h"
#include "scheduler/scheduler.h"
#include "text/tokenizer.h"
#include "workplane/report_board.h"

namespace zp::apps {

struct LocalModelOptions {
  std::string directory;
  std::string served_model_name;  // empty: the directory's name
  std::string dtype = "bf16";
  int threads = 0;  // of all ranks together; 0: one per core
  int32_t rank_count = 1;
  std::string expert_memory;  // "4GiB"; empty: what the machine can spare
  int32_t window_slot_count = engine::HostModelOptions{}.window_slot_count;
  std::string prefix_cache = "0";  // "2GiB", of all ranks together; 0: none
  double prefix_cache_quota = engine::EngineOptions{}.prefix_cache_quota;
  std::string trace_path;  // empty: no trace
  ClusterOptions cluster;  // of hosts that share the experts
  scheduler::SchedulerOptions scheduler;
  gateway::ServiceOptions service;
  std::string routing_policy = "full";
  // See routing::AdmissionOptions.
  double max_backlog_seconds = 1e9;
};

// --model, --dtype, --threads, ... on a subcommand.
void AddLocalModelFlags(CLI::App& command, LocalModelOptions& options);

// Thread safety: see Service and Scheduler.
class LocalModel {
 public:
  static absl::StatusOr<std::unique_ptr<LocalModel>> Load(const LocalModelOptions& options);
  // Writes the trace, where one was asked for.
  ~LocalModel();

  // Of works that other hosts have brought; false if some are not answered by `deadline`.
  bool DrainWorks(std::chrono::steady_clock::time_point deadline) {
    return seat_ == nullptr || seat_->DrainWorks(deadline);
  }

  // Answers what this process' clients still wait for with Unavailable.
  void RefuseWorks() { router_->Close(); }

  gateway::Service& service() { return *service_; }
  protocol::WorkSink& sink() { return *router_; }
  const gateway::ServedModel& served_model() const { return *served_model_; }
  const engine::Engine& engine() const { return *engines_.front(); }

 private:
  absl::StatusOr<std::shared_ptr<const engine::HostModel>> LoadHostModel(
      const LocalModelOptions& options);
  absl::Status TakeSeat(const LocalModelOptions& options,
                        const checkpoint::Checkpoint& checkpoint,
                        engine::HostModelOptions& host_options);
  absl::Status StartRanks(const LocalModelOptions& options);
  absl::Status OpenSeat();
  void FollowRanks();

  std::string trace_path_;
  // In the order of who uses whom: the last is destroyed first.
  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::unique_ptr<base::Trace> trace_;
  std::shared_ptr<const engine::HostModel> host_model_;
  std::vector<std::unique_ptr<engine::Engine>> engines_;  // [rank]
  std::unique_ptr<workplane::ReportBoard> report_board_;  // null: no ranks are held out
  std::unique_ptr<ClusterSeat> seat_;                     // null: this host is alone
  std::unique_ptr<gateway::ServedModel> served_model_;
  std::unique_ptr<routing::WorkRouter> router_;                    // over the ranks
  std::vector<std::unique_ptr<scheduler::Scheduler>> schedulers_;  // [rank]
  std::vector<int32_t> rank_ids_;                                  // what the router calls them
  std::unique_ptr<gateway::Service> service_;
};

}  // namespace zp::apps
