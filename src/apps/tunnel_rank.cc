#include "apps/tunnel_rank.h"

#include <sched.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "apps/held_experts.h"
#include "apps/read_rate.h"
#include "apps/tunnel_arithmetic.h"
#include "apps/tunnel_moes.h"
#include "apps/tunnel_rank_links.h"
#include "apps/tunnel_report.h"
#include "base/checksum.h"
#include "base/logging.h"
#include "base/thread_pool.h"
#include "boost/json.hpp"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "engine/host_model.h"
#include "fabric/byte_source.h"
#include "fabric/exchange.h"
#include "fmt/format.h"
#include "model/dispatched_moe.h"
#include "model/gathered_moe.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct RankOptions {
  std::string directory;
  std::string held_directory;  // with the same experts' files, to be mapped
  int32_t host = 0;
  TunnelPlacement placement;
  spec::DType dtype = spec::DType::kBf16;
  std::vector<std::string> addresses;  // [host], or:
  std::string shared_path;             // of memory that is the links
  std::vector<int> cpus;
};

// A file of prompts: one JSON array of tokens a line. Every row of a prompt is asked for one label,
// so that the last layer has as much to do as the others.
absl::StatusOr<std::vector<protocol::Work>> ReadPrompts(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    return absl::NotFoundError(fmt::format("{}: cannot be read", path));
  }
  std::vector<protocol::Work> works;
  for (std::string line; std::getline(file, line);) {
    protocol::Sequence sequence;
    const json::value tokens = json::parse(line);
    for (const json::value& token : tokens.as_array()) {
      sequence.tokens.push_back(static_cast<spec::TokenId>(token.as_int64()));
    }
    for (int32_t position = 0; position < static_cast<int32_t>(sequence.tokens.size());
         ++position) {
      sequence.rows.push_back(
          {.position = position, .columns = {0}, .full_vocabulary = false, .top_count = 0});
    }
    works.push_back({.request_id = "tunnel", .sequences = {std::move(sequence)}});
  }
  return works;
}

class TunnelRank {
 public:
  TunnelRank(RankOptions options, std::unique_ptr<RankLinks> links)
      : options_(std::move(options)), links_(std::move(links)) {}

  absl::StatusOr<json::object> Do(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "peak") {
      return MeasurePeak(words);
    }
    if (verb == "load") {
      return Load();
    }
    if (verb == "connect") {
      return Connect(words);
    }
    if (verb == "mesh") {
      ZP_ASSIGN_OR_RETURN(exchange_, links_->Join());
      ZP_RETURN_IF_ERROR(MakeEngine());
      return json::object{};
    }
    if (verb == "link") {
      return MeasureLink(words);
    }
    if (verb == "cpu") {
      return json::object{{"cpu_seconds", CpuSeconds()}};
    }
    if (verb == "run") {
      return Run(words);
    }
    return absl::InvalidArgumentError(fmt::format("'{}' is no command", verb));
  }

 private:
  absl::StatusOr<json::object> MeasurePeak(std::istream& words) const {
    double seconds = 0;
    std::string kind;
    words >> seconds >> kind;
    base::ThreadPool pool(static_cast<int>(options_.cpus.size()), options_.cpus);
    const double flops_per_s = kind == "mean"
                                   ? ops::cpu::MeasureMeanFlops(options_.dtype, pool, seconds)
                                   : ops::cpu::MeasurePeakFlops(options_.dtype, pool, seconds);
    return json::object{{"peak_flops_per_s", flops_per_s}};
  }

  absl::StatusOr<json::object> Load() {
    ZP_ASSIGN_OR_RETURN(checkpoint_, checkpoint::Checkpoint::Open(options_.directory));
    ZP_ASSIGN_OR_RETURN(sharded_, engine::HostModel::Load(*checkpoint_, Sharded()));
    ZP_ASSIGN_OR_RETURN(const std::string advertisement, links_->HoldOut(sharded_->kept_bytes()));
    ZP_ASSIGN_OR_RETURN(window_, sharded_->OpenExperts(options_.host, /*trace=*/nullptr));
    return json::object{{"advertisement", absl::BytesToHexString(advertisement)}};
  }

  // "HOST ADVERTISEMENT": another host's memory.
  absl::StatusOr<std::unique_ptr<fabric::ByteSource>> Reach(int32_t& host, std::istream& words) {
    std::string advertisement;
    words >> host >> advertisement;
    return links_->Reach(host, absl::HexStringToBytes(advertisement));
  }

  absl::StatusOr<json::object> Connect(std::istream& words) {
    int32_t host = 0;
    ZP_ASSIGN_OR_RETURN(std::unique_ptr<fabric::ByteSource> peer, Reach(host, words));
    window_->ReplaceSource(sharded_->SourceOf(host), std::move(peer));
    return json::object{};
  }

  // Bytes a second from a peer, over about two seconds.
  absl::StatusOr<json::object> MeasureLink(std::istream& words) {
    int32_t host = 0;
    ZP_ASSIGN_OR_RETURN(const std::unique_ptr<fabric::ByteSource> peer, Reach(host, words));
    // All hosts keep the same number of experts.
    const uint64_t slices = sharded_->kept_bytes().size() / kReadRateSliceBytes;
    if (slices == 0) {
      return absl::FailedPreconditionError("a host keeps too little to measure a link with");
    }
    const ReadReport report = ReadFor(*peer, slices * kReadRateSliceBytes, /*seconds=*/2);
    if (report.error != 0) {
      return absl::UnavailableError(fmt::format("link: {}", std::strerror(report.error)));
    }
    return json::object{{"link_bytes_per_s", static_cast<double>(report.bytes) / report.seconds},
                        {"all_bytes", report.all_bytes}};
  }

  // A host keeps its share and no more: what the paper calls a rank's shard. Time is stretched here
  // (a rank is thousands of times slower than what it imitates), and patience with it.
  engine::HostModelOptions Sharded() const {
    const spec::ModelSpec& spec = checkpoint_->spec();
    base::ThreadPool pool(1);
    const auto kernels = ops::cpu::CreateKernels(options_.dtype, pool);
    const size_t expert_bytes = (*kernels)->expert_layout(spec.model_dim, spec.expert_dim).bytes;
    const int64_t kept = KeptExperts(spec.expert_count, options_.placement);
    const int64_t slots = engine::HostModelOptions{}.window_slot_count;
    int64_t moe_layers = 0;
    for (const bool is_moe : spec.layer_is_moe) {
      moe_layers += is_moe ? 1 : 0;
    }
    return {.activation_dtype = options_.dtype,
            .thread_count = static_cast<int>(options_.cpus.size()),
            .expert_memory_bytes = static_cast<int64_t>(expert_bytes) *
                                   (moe_layers * kept + slots * (spec.expert_count - kept)),
            .host_count = options_.placement.ranks,
            .host = options_.host,
            .redundancy = options_.placement.redundancy,
            .streams_from_files = false,
            .gather = {.stall_timeout = std::chrono::seconds(60),
                       .give_up_timeout = std::chrono::seconds(600)}};
  }

  // One engine over the sharded model. Gather and dispatch use the same shard.
  absl::Status MakeEngine() {
    const auto make_moes =
        [&](ops::Kernels& kernels) -> absl::StatusOr<std::unique_ptr<model::MoeBlock>> {
      kernels_ = &kernels;
      auto moes = std::make_unique<TunnelMoes>();
      moes->Add("gather", Gathered(*window_));
      moes->Add("dispatch", Dispatched(/*overlaps=*/false));
      moes->Add("dispatch-overlap", Dispatched(/*overlaps=*/true));
      moes_ = moes.get();
      return moes;
    };
    ZP_ASSIGN_OR_RETURN(
        engine_,
        engine::Engine::Create(sharded_,
                               {.rank = options_.host,
                                .thread_count = static_cast<int>(options_.cpus.size()),
                                .cpus = options_.cpus,
                                .chunk_tokens = kTunnelChunkTokens},
                               make_moes));
    return absl::OkStatus();
  }

  std::unique_ptr<model::MoeBlock> Gathered(experts::ExpertProvider& experts) const {
    return std::make_unique<model::GatheredMoe>(
        sharded_->spec().layer_is_moe, sharded_->expert_layout(), experts, *kernels_);
  }

  std::unique_ptr<model::MoeBlock> Dispatched(bool overlaps) {
    const spec::ModelSpec& spec = sharded_->spec();
    local_blobs_.resize(spec.layer_count);
    for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
      local_blobs_[layer].clear();
      for (int32_t expert = 0; spec.layer_is_moe[layer] && expert < spec.expert_count; ++expert) {
        local_blobs_[layer].push_back(sharded_->store().Find(layer, expert));
      }
    }
    return std::make_unique<model::DispatchedMoe>(
        spec.layer_is_moe,
        sharded_->expert_layout(),
        DispatchOwners(spec.expert_count, options_.placement, options_.host),
        [this](int32_t layer) { return std::span<const std::byte* const>(local_blobs_[layer]); },
        *exchange_,
        *kernels_,
        model::DispatchOptions{.part_rows = DispatchedRows(options_.placement.ranks, overlaps),
                               .overlaps = overlaps});
  }

  // What only some strategies need, when it is asked for.
  absl::Status Prepare(const std::string& strategy) {
    if ((strategy == "resident" || strategy == "alone") && held_ == nullptr) {
      return MapExperts();
    }
    return strategy == "loaded" && own_copy_ == nullptr ? LoadOwnCopy() : absl::OkStatus();
  }

  // All experts, one copy for all ranks.
  absl::Status MapExperts() {
    ZP_ASSIGN_OR_RETURN(const checkpoint::PackedExperts packed,
                        checkpoint::ReadPackedExperts(options_.directory, sharded_->spec()));
    ZP_ASSIGN_OR_RETURN(held_, HeldExperts::Map(packed, options_.held_directory));
    moes_->Add("resident", Gathered(*held_));
    moes_->Add("alone", Gathered(*held_));
    return absl::OkStatus();
  }

  // The same experts in memory of this rank's own, to hold mapped ones against: a model more.
  absl::Status LoadOwnCopy() {
    ZP_ASSIGN_OR_RETURN(
        own_copy_,
        engine::HostModel::Load(*checkpoint_,
                                {.activation_dtype = options_.dtype,
                                 .thread_count = static_cast<int>(options_.cpus.size()),
                                 .expert_memory_bytes = int64_t{1} << 50}));
    std::vector<std::vector<const std::byte*>> blobs(own_copy_->spec().layer_count);
    for (int32_t layer = 0; layer < own_copy_->spec().layer_count; ++layer) {
      for (int32_t expert = 0; expert < own_copy_->store().catalog().expert_count_of(layer);
           ++expert) {
        blobs[layer].push_back(own_copy_->store().Find(layer, expert));
      }
    }
    own_held_ = std::make_unique<HeldExperts>(std::move(blobs));
    moes_->Add("loaded", Gathered(*own_held_));
    return absl::OkStatus();
  }

  absl::StatusOr<json::object> Run(std::istream& words) {
    std::string strategy;
    int warm_passes = 0;
    int pass_count = 0;
    words >> strategy >> warm_passes >> pass_count;
    if (moes_ == nullptr) {
      return absl::FailedPreconditionError("a run needs the ranks' mesh");
    }
    ZP_RETURN_IF_ERROR(Prepare(strategy));
    model::MoeBlock* const block = moes_->Choose(strategy);
    if (block == nullptr) {
      return absl::InvalidArgumentError(fmt::format("'{}' is no strategy here", strategy));
    }
    std::vector<std::vector<protocol::Work>> queue;
    for (std::string path; words >> path;) {
      ZP_ASSIGN_OR_RETURN(queue.emplace_back(), ReadPrompts(path));
    }
    for (int pass = 0; pass < warm_passes && !queue.empty(); ++pass) {
      RankRun not_counted;
      ZP_RETURN_IF_ERROR(RunPass(queue[0], not_counted));
    }
    RankRun run;
    const double cpu_seconds = CpuSeconds();
    const auto begin = std::chrono::steady_clock::now();
    for (int pass = 0; pass < pass_count; ++pass) {
      if (pass < static_cast<int>(queue.size())) {
        ZP_RETURN_IF_ERROR(RunPass(queue[pass], run));
      } else if (auto* dispatched = dynamic_cast<model::DispatchedMoe*>(block);
                 dispatched != nullptr) {
        ZP_RETURN_IF_ERROR(ServePass(*dispatched, run));
      }
    }
    run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    run.cpu_seconds = CpuSeconds() - cpu_seconds;
    if (auto* gathered = dynamic_cast<model::GatheredMoe*>(block); gathered != nullptr) {
      ZP_RETURN_IF_ERROR(gathered->AwaitWindow());  // or it would run into what comes next
    }
    return run.ToJson();
  }

  absl::Status RunPass(const std::vector<protocol::Work>& works, RankRun& run) {
    const engine::BatchResult result = engine_->Run(PointersTo(works));
    std::vector<float> answers = {};
    for (const auto& work : result.works) {
      ZP_RETURN_IF_ERROR(work.status());
      for (const protocol::Row& row : work->sequences[0].rows) {
        answers.insert(answers.end(), row.column_logits.begin(), row.column_logits.end());
      }
    }
    const uint64_t chain[] = {run.answers_checksum,
                              base::Checksum(std::as_bytes(std::span(answers)))};
    run.answers_checksum = base::Checksum(std::as_bytes(std::span(chain)));
    run.tokens += result.report.computed_tokens;
    run.flops += result.report.flops;
    run.wait_seconds += result.report.exposed_wait_seconds;
    for (const engine::LayerReport& layer : result.report.layers) {
      run.gathered_bytes += static_cast<double>(layer.gathered_bytes);
      run.gather_seconds += layer.gather_seconds;
    }
    return absl::OkStatus();
  }

  // A pass of the others, whose tokens come here. Its FLOPs are counted where the tokens are.
  absl::Status ServePass(model::DispatchedMoe& dispatched, RankRun& run) {
    model::PassProfile profile;
    profile.Clear(sharded_->spec().layer_count, /*source_count=*/0);
    ZP_RETURN_IF_ERROR(dispatched.ServePass(profile));
    run.wait_seconds += profile.seconds(model::Op::kWeightWait);
    for (const model::LayerProfile& layer : profile.layers()) {
      run.gathered_bytes += static_cast<double>(layer.gathered_bytes);
      run.gather_seconds += layer.gather_seconds;
    }
    return absl::OkStatus();
  }

  const RankOptions options_;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  std::shared_ptr<const engine::HostModel> sharded_;
  const std::unique_ptr<RankLinks>
      links_;  // ends before what it holds out, after who reads over it
  std::unique_ptr<fabric::Exchange> exchange_;
  std::unique_ptr<experts::ExpertGatherer> window_;
  std::unique_ptr<HeldExperts> held_;
  std::shared_ptr<const engine::HostModel> own_copy_;
  std::unique_ptr<HeldExperts> own_held_;
  std::vector<std::vector<const std::byte*>> local_blobs_;  // [layer][expert], of this host
  ops::Kernels* kernels_ = nullptr;                         // the engine's
  TunnelMoes* moes_ = nullptr;                              // the engine's
  std::unique_ptr<engine::Engine> engine_;
};

void Answer(const absl::StatusOr<json::object>& answer) {
  const json::object line =
      answer.ok() ? *answer : json::object{{"error", base::MessageOf(answer.status())}};
  std::cout << json::serialize(line) << std::endl;
}

// All threads that come are to keep to the rank's cores: a rank is no faster for having two of
// them.
absl::Status KeepTo(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) {
    CPU_SET(cpu, &set);
  }
  return sched_setaffinity(0, sizeof(set), &set) == 0
             ? absl::OkStatus()
             : absl::ErrnoToStatus(errno, "a rank cannot be held to its cores");
}

absl::Status RunRank(const RankOptions& options) {
  base::SetLogLevel("warn");
  ZP_RETURN_IF_ERROR(KeepTo(options.cpus));
  std::unique_ptr<RankLinks> links;
  if (options.shared_path.empty()) {
    if (std::ssize(options.addresses) != options.placement.ranks) {
      return absl::InvalidArgumentError("a rank needs --shared, or --addresses of all hosts");
    }
    links = MakeNetworkRankLinks(options.host, options.addresses);
  } else {
    ZP_ASSIGN_OR_RETURN(
        links, OpenSharedRankLinks(options.host, options.placement.ranks, options.shared_path));
  }
  TunnelRank rank(options, std::move(links));
  for (std::string line; std::getline(std::cin, line);) {
    Answer(rank.Do(line));
  }
  return absl::OkStatus();
}

}  // namespace

void AddTunnelRankCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("tunnel-rank", "One rank of `bench tunnel`")->group("");
  const auto options = std::make_shared<RankOptions>();
  command->add_option("--packed", options->directory)->required();
  command->add_option("--held", options->held_directory)->required();
  command->add_option("--host", options->host)->required();
  command->add_option("--hosts", options->placement.ranks)->required();
  command->add_option("--redundancy", options->placement.redundancy)->required();
  const auto dtype = std::make_shared<std::string>("bf16");
  command->add_option("--dtype", *dtype);
  CLI::Option* const addresses =
      command->add_option("--addresses", options->addresses)->delimiter(',');
  command->add_option("--shared", options->shared_path)->excludes(addresses);
  command->add_option("--cpus", options->cpus)->delimiter(',')->required();
  command->callback([options, dtype] {
    const absl::StatusOr<spec::DType> parsed = ParseDType(*dtype);
    ExitOnError(parsed.status());
    options->dtype = *parsed;
    ExitOnError(RunRank(*options));
  });
}

}  // namespace zp::apps
