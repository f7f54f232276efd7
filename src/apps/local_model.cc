#include "apps/local_model.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <utility>

#include "apps/command.h"
#include "base/checksum.h"
#include "base/logging.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "fmt/format.h"
#include "spec/flops.h"

namespace zp::apps {
namespace {

std::string NameOf(const LocalModelOptions& options) {
  if (!options.served_model_name.empty()) {
    return options.served_model_name;
  }
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(options.directory, error);
  return error ? options.directory : path.filename().string();
}

// The cores of this process, neighbours together: on machines with several NUMA domains a rank's
// cores lie in as few as possible. With more ranks than cores some share one.
std::vector<std::vector<int>> SplitCores(const LocalModelOptions& options) {
  std::vector<int> cpus;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) {
      cpus.push_back(cpu);
    }
  }
  const int thread_count = options.threads > 0 ? options.threads : static_cast<int>(cpus.size());
  std::vector<std::vector<int>> split(options.rank_count);
  for (int32_t rank = 0; rank < options.rank_count; ++rank) {
    const int begin = thread_count * rank / options.rank_count;
    const int end = std::max(begin + 1, thread_count * (rank + 1) / options.rank_count);
    for (int thread = begin; thread < end; ++thread) {
      split[rank].push_back(cpus[thread % cpus.size()]);
    }
  }
  return split;
}

absl::Status CheckDirectory(const std::string& directory) {
  std::error_code error;
  return std::filesystem::is_directory(directory, error)
             ? absl::OkStatus()
             : absl::NotFoundError(fmt::format(
                   "--model: \"{}\" is no directory; models are read from disk, none is downloaded",
                   directory));
}

absl::StatusOr<int64_t> PrefixCacheBytes(const LocalModelOptions& options) {
  absl::StatusOr<int64_t> bytes = base::ParseBytes(options.prefix_cache);
  if (!bytes.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("--prefix-cache: {}", base::MessageOf(bytes.status())));
  }
  return bytes;
}

}  // namespace

void AddLocalModelFlags(CLI::App& command, LocalModelOptions& options) {
  command.add_option("--model", options.directory, "Hugging Face model directory")->required();
  command.add_option("--served-model-name",
                     options.served_model_name,
                     "The name that requests use (default: the directory's)");
  command
      .add_option("--ranks",
                  options.rank_count,
                  "Engines that share the weights and the cores; each runs a pass of its own")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--expert-memory",
                     options.expert_memory,
                     "For experts, e.g. 4GiB; what does not fit streams from a packed directory "
                     "(default: what the machine can spare)");
  command
      .add_option("--window-slots",
                  options.window_slot_count,
                  "Layers whose streamed experts are in use or on their way")
      ->check(CLI::Range(2, 16))
      ->capture_default_str();
  command
      .add_option("--prefix-cache",
                  options.prefix_cache,
                  "For K and V of prompts' beginnings, kept from pass to pass, e.g. 2GiB, of all "
                  "ranks together; 0 is none")
      ->capture_default_str();
  command
      .add_option("--prefix-cache-quota",
                  options.prefix_cache_quota,
                  "Fraction of the prefix cache that requests of one cache_salt may take")
      ->check(IsWithin(0, 1))
      ->capture_default_str();
  command
      .add_option("--routing",
                  options.routing_policy,
                  "How works find their rank; the others are there to be compared with")
      ->check(CLI::IsMember(routing::PolicyNames()))
      ->capture_default_str();
  command.add_option("--trace",
                     options.trace_path,
                     "Write a Chrome trace of compute and gathers to this file at the end");
  command.add_option("--dtype", options.dtype, "Activations: bf16 or f32")->capture_default_str();
  command
      .add_option("--threads", options.threads, "Compute threads of all ranks; 0 is one per core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command
      .add_option("--max-batch-tokens",
                  options.scheduler.max_batch_tokens,
                  "Distinct tokens of one forward pass; larger requests take several")
      ->check(IsPositive())
      ->capture_default_str();
  command
      .add_option("--max-sequence-tokens",
                  options.scheduler.max_sequence_tokens,
                  "Tokens of one prompt with its label; above a pass it runs alone")
      ->check(IsPositive())
      ->capture_default_str();
}

absl::StatusOr<std::shared_ptr<const engine::HostModel>> LocalModel::LoadHostModel(
    const LocalModelOptions& options) {
  ZP_ASSIGN_OR_RETURN(const int64_t prefix_cache_bytes, PrefixCacheBytes(options));
  engine::HostModelOptions host_options = {.thread_count = options.threads,
                                           .rank_count = options.rank_count,
                                           .reserved_bytes = prefix_cache_bytes,
                                           .window_slot_count = options.window_slot_count};
  ZP_ASSIGN_OR_RETURN(host_options.activation_dtype, ParseDType(options.dtype));
  if (!options.expert_memory.empty()) {
    const absl::StatusOr<int64_t> bytes = base::ParseBytes(options.expert_memory);
    if (!bytes.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("--expert-memory: {}", base::MessageOf(bytes.status())));
    }
    host_options.expert_memory_bytes = *bytes;
  } else if (prefix_cache_bytes > 0 && engine::SpareMemoryBytes(prefix_cache_bytes) == 0) {
    return absl::ResourceExhaustedError(
        fmt::format("--prefix-cache: {} leaves no memory for experts; the machine can spare {} for "
                    "both",
                    base::FormatBytes(prefix_cache_bytes),
                    base::FormatBytes(engine::SpareMemoryBytes(0))));
  }
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoint::Checkpoint> checkpoint,
                      checkpoint::Checkpoint::Open(options.directory));
  if (options.cluster.is_in_use()) {
    ZP_RETURN_IF_ERROR(TakeSeat(options, *checkpoint, host_options));
  }
  return engine::HostModel::Load(*checkpoint, host_options);
}

// Founds the cluster with this host's numbers, or joins it and takes over its own.
absl::Status LocalModel::TakeSeat(const LocalModelOptions& options,
                                  const checkpoint::Checkpoint& checkpoint,
                                  engine::HostModelOptions& host_options) {
  if (options.cluster.coordinator.empty()) {  // the founder: before anybody joins
    if (!host_options.expert_memory_bytes.has_value()) {
      return absl::InvalidArgumentError(
          "--hosts needs --expert-memory: what each of the hosts gives to experts");
    }
    host_options.host_count = options.cluster.host_count;
    host_options.redundancy = options.cluster.redundancy;
    ZP_RETURN_IF_ERROR(engine::CheckPlacement(checkpoint, host_options));
  }
  ZP_ASSIGN_OR_RETURN(std::string fingerprint, engine::SharedFingerprint(checkpoint, host_options));
  ZP_ASSIGN_OR_RETURN(
      seat_,
      ClusterSeat::Take(options.cluster,
                        {.model_fingerprint = std::move(fingerprint),
                         .expert_memory_bytes = host_options.expert_memory_bytes.value_or(
                             engine::SpareMemoryBytes(host_options.reserved_bytes)),
                         .rank_count = options.rank_count,
                         .window_slot_count = options.window_slot_count}));
  const cluster::PlacementInputs& placement = seat_->placement();
  host_options.rank_count = placement.rank_count;
  host_options.expert_memory_bytes = static_cast<int64_t>(placement.expert_memory_bytes);
  host_options.window_slot_count = placement.window_slot_count;
  host_options.host_count = placement.host_slots;
  host_options.host = seat_->host();
  host_options.redundancy = placement.redundancy;
  host_options.peers = seat_->peers();
  return absl::OkStatus();
}

absl::Status LocalModel::OpenSeat() {
  std::vector<engine::Engine*> engines;
  for (const std::unique_ptr<engine::Engine>& engine : engines_) {
    engines.push_back(engine.get());
  }
  if (report_board_ != nullptr) {
    std::vector<protocol::WorkSink*> ranks;
    for (const std::unique_ptr<scheduler::Scheduler>& scheduler : schedulers_) {
      ranks.push_back(scheduler.get());
    }
    const int64_t max_held_blocks =
        engines.front()->prefix_cache_tokens() / protocol::kBlockTokens;  // all have the same
    ZP_RETURN_IF_ERROR(seat_->HoldOutRanks(
        std::move(ranks), *report_board_, static_cast<uint64_t>(max_held_blocks)));
  } else {
    FollowRanks();
  }
  return seat_->Open(host_model_->kept_bytes(), std::move(engines));
}

// The founder brings works to the workers' ranks as to its own.
void LocalModel::FollowRanks() {
  seat_->FollowRanks({.add =
                          [this](int32_t rank_id, protocol::WorkSink& sink) {
                            const absl::Status status = router_->AddRank(rank_id, sink);
                            base::log::info("routing: rank {} {}",
                                            rank_id,
                                            status.ok() ? "takes works" : base::MessageOf(status));
                          },
                      .remove =
                          [this](int32_t rank_id) {
                            base::log::warn("routing: rank {} is lost", rank_id);
                            router_->RemoveRank(rank_id);
                          },
                      .report =
                          [this](int32_t rank_id, const protocol::RankReport& report) {
                            router_->OnReport(rank_id, report);
                          }});
}

absl::Status LocalModel::StartRanks(const LocalModelOptions& options) {
  if (!options.trace_path.empty()) {
    trace_path_ = options.trace_path;
    trace_ = std::make_unique<base::Trace>();
  }
  ZP_ASSIGN_OR_RETURN(const int64_t prefix_cache_bytes, PrefixCacheBytes(options));
  if (!options.cluster.coordinator.empty()) {
    report_board_ = std::make_unique<workplane::ReportBoard>(options.rank_count);
  }
  const std::vector<std::vector<int>> cpus_of_rank = SplitCores(options);
  ZP_ASSIGN_OR_RETURN(std::unique_ptr<routing::RoutingPolicy> policy,
                      routing::MakePolicy(options.routing_policy));
  // Hosts that tell each other what their caches hold call it by the same names.
  const uint64_t block_key = seat_ != nullptr ? seat_->block_key() : base::RandomKey();
  router_ = std::make_unique<routing::WorkRouter>(
      host_model_->spec(),
      routing::RouterOptions{.block_key = block_key,
                             .admission = {.max_backlog_seconds = options.max_backlog_seconds}},
      std::move(policy));
  for (int32_t rank = 0; rank < options.rank_count; ++rank) {
    const std::vector<int>& cpus = cpus_of_rank[rank];
    ZP_ASSIGN_OR_RETURN(
        engines_.emplace_back(),
        engine::Engine::Create(host_model_,
                               {.rank = rank,
                                .thread_count = static_cast<int>(cpus.size()),
                                .cpus = options.rank_count > 1 ? cpus : std::vector<int>{},
                                .trace = trace_.get(),
                                .prefix_cache_bytes = prefix_cache_bytes / options.rank_count,
                                .prefix_cache_quota = options.prefix_cache_quota,
                                .block_key = block_key}));
    scheduler::SchedulerOptions scheduler_options = options.scheduler;
    scheduler_options.rank = rank;
    scheduler_options.block_key = block_key;
    scheduler_options.cache_tokens = static_cast<int64_t>(
        options.prefix_cache_quota * static_cast<double>(engines_.back()->prefix_cache_tokens()));
    const int32_t rank_id = RankIdOf(seat_ != nullptr ? seat_->host() : 0, rank);
    scheduler_options.on_report = [this, rank, rank_id](const protocol::RankReport& report) {
      router_->OnReport(rank_id, report);
      if (report_board_ != nullptr) {
        report_board_->OnReport(rank, report);
      }
    };
    schedulers_.push_back(
        std::make_unique<scheduler::Scheduler>(*engines_.back(), scheduler_options));
    rank_ids_.push_back(rank_id);
    ZP_RETURN_IF_ERROR(router_->AddRank(rank_id, *schedulers_.back()));
  }
  return absl::OkStatus();
}

LocalModel::~LocalModel() {
  service_.reset();
  if (seat_ != nullptr) {
    seat_->StopWorks();
  }
  for (const int32_t rank_id : rank_ids_) {
    router_->RemoveRank(rank_id);  // so that none sends its queue to another that is gone
  }
  schedulers_.clear();
  router_.reset();
  seat_.reset();
  engines_.clear();
  if (trace_ != nullptr) {
    if (const absl::Status status = trace_->Write(trace_path_); !status.ok()) {
      base::log::warn("{}", base::MessageOf(status));
    }
  }
}

absl::StatusOr<std::unique_ptr<LocalModel>> LocalModel::Load(const LocalModelOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  auto model = std::unique_ptr<LocalModel>(new LocalModel());
  ZP_RETURN_IF_ERROR(CheckDirectory(options.directory));
  ZP_ASSIGN_OR_RETURN(model->tokenizer_,
                      text::Tokenizer::Load(options.directory + "/tokenizer.json"));
  ZP_ASSIGN_OR_RETURN(model->host_model_, model->LoadHostModel(options));
  ZP_RETURN_IF_ERROR(model->StartRanks(options));
  if (model->seat_ != nullptr) {
    ZP_RETURN_IF_ERROR(model->OpenSeat());
  }
  const spec::ModelSpec& spec = model->engine().spec();
  ZP_ASSIGN_OR_RETURN(
      gateway::ServedModel served_model,
      gateway::ServedModel::Load(options.directory, NameOf(options), *model->tokenizer_, spec));
  model->served_model_ = std::make_unique<gateway::ServedModel>(std::move(served_model));
  model->service_ =
      std::make_unique<gateway::Service>(*model->served_model_, *model->router_, options.service);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  base::log::info("loaded {} in {:.1f} s: {}, {} parameters, {} active, {} kernels",
                  model->served_model_->name(),
                  seconds.count(),
                  spec.family,
                  base::FormatCount(static_cast<double>(spec::TotalParameters(spec))),
                  base::FormatCount(static_cast<double>(spec::ActiveParameters(spec))),
                  model->engine().kernels_name());
  return model;
}

}  // namespace zp::apps
