#include "apps/tunnel_rank.h"

#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "apps/bench_prompts.h"
#include "apps/command.h"
#include "apps/read_rate.h"
#include "base/logging.h"
#include "base/thread_pool.h"
#include "boost/json.hpp"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "engine/host_model.h"
#include "fabric/exchange_mesh.h"
#include "fabric/exchange_tcp.h"
#include "fabric/memory_server.h"
#include "fabric/peer_source.h"
#include "fmt/format.h"
#include "model/dispatched_moe.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct RankOptions {
  std::string directory;
  int32_t host = 0;
  int32_t host_count = 2;
  std::vector<std::string> addresses;  // [host]
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
  explicit TunnelRank(RankOptions options) : options_(std::move(options)) {}

  absl::StatusOr<json::object> Start() {
    ZP_ASSIGN_OR_RETURN(checkpoint_, checkpoint::Checkpoint::Open(options_.directory));
    base::ThreadPool pool(static_cast<int>(options_.cpus.size()), options_.cpus);
    peak_flops_per_s_ = ops::cpu::MeasurePeakFlops(spec::DType::kBf16, pool);
    ZP_ASSIGN_OR_RETURN(sharded_, engine::HostModel::Load(*checkpoint_, Sharded()));
    const fabric::MemoryRegion region{.object = 0, .bytes = sharded_->kept_bytes()};
    ZP_ASSIGN_OR_RETURN(
        server_,
        fabric::ServeMemory(std::span(&region, 1), {.address = options_.addresses[options_.host]}));
    ZP_ASSIGN_OR_RETURN(listener_, fabric::ListenForRanks(RankAddresses()[options_.host]));
    ZP_ASSIGN_OR_RETURN(engines_["gather"], engine::Engine::Create(sharded_, EngineOptions()));
    return json::object{{"advertisement", absl::BytesToHexString(server_->advertisement())},
                        {"peak_flops_per_s", peak_flops_per_s_}};
  }

  absl::StatusOr<json::object> Do(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "connect") {
      int32_t host = 0;
      std::string advertisement;
      words >> host >> advertisement;
      ZP_RETURN_IF_ERROR(
          engines_["gather"]->ConnectHost(host, absl::HexStringToBytes(advertisement)));
      return json::object{};
    }
    if (verb == "mesh") {
      ZP_RETURN_IF_ERROR(ConnectRanks());
      return json::object{};
    }
    if (verb == "link") {
      std::string advertisement;
      words >> advertisement;
      return MeasureLink(absl::HexStringToBytes(advertisement));
    }
    if (verb == "run") {
      std::string strategy;
      int warm_passes = 0;
      std::string path;
      words >> strategy >> warm_passes >> path;
      return Run(strategy, warm_passes, path);
    }
    return absl::InvalidArgumentError(fmt::format("'{}' is no command", verb));
  }

 private:
  // Bytes a second from a peer, over about two seconds.
  absl::StatusOr<json::object> MeasureLink(const std::string& advertisement) {
    ZP_ASSIGN_OR_RETURN(const std::unique_ptr<fabric::ByteSource> peer,
                        fabric::OpenPeerSource(advertisement));
    // All hosts keep the same number of experts.
    const uint64_t slices = sharded_->kept_bytes().size() / kReadRateSliceBytes;
    if (slices == 0) {
      return absl::FailedPreconditionError("a host keeps too little to measure a link with");
    }
    const ReadReport report = ReadFor(*peer, slices * kReadRateSliceBytes, /*seconds=*/2);
    if (report.error != 0) {
      return absl::UnavailableError(fmt::format("link: {}", std::strerror(report.error)));
    }
    return json::object{{"link_bytes_per_s", static_cast<double>(report.bytes) / report.seconds}};
  }

  std::vector<fabric::RankAddress> RankAddresses() const {
    constexpr uint16_t kPort = 7300;  // every rank has a network namespace of its own
    std::vector<fabric::RankAddress> addresses;
    for (const std::string& address : options_.addresses) {
      addresses.push_back({.host = address, .port = kPort});
    }
    return addresses;
  }

  // The all-to-all of dispatch; all ranks do this at once.
  absl::Status ConnectRanks() {
    const auto addresses = RankAddresses();
    ZP_ASSIGN_OR_RETURN(
        std::vector<fabric::Descriptor> sockets,
        fabric::ConnectMesh(listener_, options_.host, addresses, std::chrono::seconds(60)));
    exchange_ =
        fabric::MakeTcpExchange(std::move(sockets), options_.host, std::chrono::seconds(600));
    return absl::OkStatus();
  }

  // The same shard as gather's, fixed: tokens come to it.
  absl::StatusOr<std::unique_ptr<engine::Engine>> MakeDispatchEngine() {
    if (exchange_ == nullptr) {
      return absl::FailedPreconditionError("dispatch needs the ranks' mesh");
    }
    const spec::ModelSpec& spec = sharded_->spec();
    local_blobs_.resize(spec.layer_count);
    for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
      for (int32_t expert = 0; spec.layer_is_moe[layer] && expert < spec.expert_count; ++expert) {
        local_blobs_[layer].push_back(sharded_->store().Find(layer, expert));
      }
    }
    return engine::Engine::Create(
        sharded_,
        EngineOptions(),
        [this, &spec](ops::Kernels& kernels) -> absl::StatusOr<std::unique_ptr<model::MoeBlock>> {
          return std::make_unique<model::DispatchedMoe>(
              spec.layer_is_moe,
              sharded_->expert_layout(),
              spec.expert_count,
              [this](int32_t layer) {
                return std::span<const std::byte* const>(local_blobs_[layer]);
              },
              *exchange_,
              kernels);
        });
  }

  // A host keeps its share and no more: what the paper calls a rank's shard.
  engine::HostModelOptions Sharded() const {
    const spec::ModelSpec& spec = checkpoint_->spec();
    base::ThreadPool pool(1);
    const auto kernels = ops::cpu::CreateKernels(spec::DType::kBf16, pool);
    const size_t expert_bytes = (*kernels)->expert_layout(spec.model_dim, spec.expert_dim).bytes;
    const int64_t kept = (spec.expert_count + options_.host_count - 1) / options_.host_count;
    const int64_t slots = engine::HostModelOptions{}.window_slot_count;
    int64_t moe_layers = 0;
    for (const bool is_moe : spec.layer_is_moe) {
      moe_layers += is_moe ? 1 : 0;
    }
    return {.thread_count = static_cast<int>(options_.cpus.size()),
            .expert_memory_bytes = static_cast<int64_t>(expert_bytes) *
                                   (moe_layers * kept + slots * (spec.expert_count - kept)),
            .host_count = options_.host_count,
            .host = options_.host,
            .redundancy = 1,
            .streams_from_files = false};
  }

  engine::EngineOptions EngineOptions() const {
    return {.rank = options_.host,
            .thread_count = static_cast<int>(options_.cpus.size()),
            .cpus = options_.cpus};
  }

  absl::StatusOr<engine::Engine*> EngineFor(const std::string& strategy) {
    std::unique_ptr<engine::Engine>& engine = engines_[strategy];
    if (engine == nullptr && strategy == "resident") {
      ZP_ASSIGN_OR_RETURN(
          std::shared_ptr<const engine::HostModel> all,
          engine::HostModel::Load(*checkpoint_,
                                  {.thread_count = static_cast<int>(options_.cpus.size()),
                                   .expert_memory_bytes = int64_t{1} << 50}));
      ZP_ASSIGN_OR_RETURN(engine, engine::Engine::Create(std::move(all), EngineOptions()));
    }
    if (engine == nullptr && strategy == "dispatch") {
      ZP_ASSIGN_OR_RETURN(engine, MakeDispatchEngine());
    }
    if (engine == nullptr) {
      return absl::InvalidArgumentError(fmt::format("'{}' is no strategy", strategy));
    }
    return engine.get();
  }

  absl::StatusOr<json::object> Run(const std::string& strategy,
                                   int warm_passes,
                                   const std::string& path) {
    ZP_ASSIGN_OR_RETURN(engine::Engine * engine, EngineFor(strategy));
    ZP_ASSIGN_OR_RETURN(const std::vector<protocol::Work> works, ReadPrompts(path));
    const std::vector<const protocol::Work*> batch = PointersTo(works);
    for (int pass = 0; pass < warm_passes; ++pass) {
      engine->Run(batch);
    }
    const double cpu_seconds = CpuSeconds();
    const engine::BatchResult result = engine->Run(batch);
    for (const auto& work : result.works) {
      ZP_RETURN_IF_ERROR(work.status());
    }
    const engine::PassReport& report = result.report;
    int64_t gathered_bytes = 0;
    double gather_seconds = 0;
    for (const engine::LayerReport& layer : report.layers) {
      gathered_bytes += layer.gathered_bytes;
      gather_seconds += layer.gather_seconds;
    }
    return json::object{{"tokens", report.computed_tokens},
                        {"seconds", report.seconds},
                        {"wait_seconds", report.exposed_wait_seconds},
                        {"gather_seconds", gather_seconds},
                        {"gathered_bytes", gathered_bytes},
                        {"flops", report.flops},
                        {"cpu_seconds", CpuSeconds() - cpu_seconds}};
  }

  const RankOptions options_;
  double peak_flops_per_s_ = 0;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  std::shared_ptr<const engine::HostModel> sharded_;
  std::unique_ptr<fabric::MemoryServer> server_;
  fabric::Descriptor listener_;
  std::unique_ptr<fabric::Exchange> exchange_;
  std::vector<std::vector<const std::byte*>> local_blobs_;  // [layer][expert], of this host
  std::map<std::string, std::unique_ptr<engine::Engine>> engines_;
};

void Answer(const absl::StatusOr<json::object>& answer) {
  const json::object line =
      answer.ok() ? *answer : json::object{{"error", base::MessageOf(answer.status())}};
  std::cout << json::serialize(line) << std::endl;
}

absl::Status RunRank(const RankOptions& options) {
  base::SetUpLogging("warn");
  TunnelRank rank(options);
  Answer(rank.Start());
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
  command->add_option("--host", options->host)->required();
  command->add_option("--hosts", options->host_count)->required();
  command->add_option("--addresses", options->addresses)->delimiter(',')->required();
  command->add_option("--cpus", options->cpus)->delimiter(',')->required();
  command->callback([options] { ExitOnError(RunRank(*options)); });
}

}  // namespace zp::apps
