#include "engine/host_model.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/checksum.h"
#include "base/logging.h"
#include "base/units.h"
#include "experts/load_store.h"
#include "fabric/file_source.h"
#include "fabric/peer_source.h"
#include "fmt/format.h"
#include "model/expert_blob.h"
#include "model/pack_checkpoint.h"
#include "ops/cpu/cpu_kernels.h"
#include "ops/reference/reference_kernels.h"

namespace zp::engine {
namespace {

// Left to activations and everything else.
constexpr int64_t kSpareBytes = int64_t{3} << 30;

absl::StatusOr<std::unique_ptr<ops::Kernels>> MakeKernels(const HostModelOptions& options,
                                                          base::ThreadPool& pool) {
  if (options.backend == Backend::kReference) {
    return ops::reference::CreateKernels();
  }
  return ops::cpu::CreateKernels(options.activation_dtype, pool);
}

// The index of a packed directory, held against what the kernels read.
absl::StatusOr<checkpoint::PackedExperts> ReadPacked(const checkpoint::Checkpoint& checkpoint,
                                                     const ops::Kernels& kernels) {
  ZP_ASSIGN_OR_RETURN(checkpoint::PackedExperts packed,
                      checkpoint::ReadPackedExperts(checkpoint.directory(), checkpoint.spec()));
  ZP_RETURN_IF_ERROR(model::CheckPackedLayout(packed, checkpoint.spec(), kernels));
  return packed;
}

absl::Status NotPacked(const checkpoint::Checkpoint& checkpoint) {
  return absl::FailedPreconditionError(
      fmt::format("{}: several hosts share the experts of a packed directory only; `zeroprefill "
                  "pack` makes one",
                  checkpoint.directory()));
}

// What hosts could share of a checkpoint, without its weights.
struct SharedExperts {
  checkpoint::PackedExperts packed;
  ops::ExpertLayout layout;
};

absl::StatusOr<SharedExperts> ReadSharedExperts(const checkpoint::Checkpoint& checkpoint,
                                                const HostModelOptions& options) {
  if (checkpoint.has_expert_tensors()) {
    return NotPacked(checkpoint);
  }
  base::ThreadPool pool(1);
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ops::Kernels> kernels, MakeKernels(options, pool));
  SharedExperts shared;
  ZP_ASSIGN_OR_RETURN(shared.packed, ReadPacked(checkpoint, *kernels));
  shared.layout = kernels->expert_layout(
      checkpoint.spec().model_dim, checkpoint.spec().expert_dim, shared.packed.fp8_blocks);
  return shared;
}

experts::ExpertCatalog CatalogOf(const spec::ModelSpec& spec, const ops::ExpertLayout& layout) {
  return {.layer_has_experts = spec.layer_is_moe,
          .expert_count = spec.expert_count,
          .expert_bytes = layout.bytes};
}

absl::StatusOr<experts::Placement> PlaceExperts(const experts::ExpertCatalog& catalog,
                                                const HostModelOptions& options) {
  const int64_t budget =
      options.expert_memory_bytes.value_or(SpareMemoryBytes(options.reserved_bytes));
  const std::vector<experts::HostBudget> hosts(
      options.host_count,
      {.expert_memory_bytes = static_cast<size_t>(budget), .rank_count = options.rank_count});
  return experts::Placement::Compute(catalog, hosts, options.window_slot_count, options.redundancy);
}

// The first error of many threads.
class FirstError {
 public:
  void Record(absl::Status status) {
    if (!status.ok()) {
      const std::lock_guard lock(mutex_);
      if (status_.ok()) {
        status_ = std::move(status);
      }
    }
  }
  absl::Status status() {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  std::mutex mutex_;
  absl::Status status_;
};

// Fills the store with what this host keeps, one task per expert.
absl::Status PackExperts(const checkpoint::Checkpoint& checkpoint,
                         const ops::Kernels& kernels,
                         base::ThreadPool& pool,
                         experts::ExpertStore& store) {
  struct Kept {
    experts::LayerIndex layer;
    int32_t expert;
  };
  std::vector<Kept> kept;
  const experts::ExpertCatalog& catalog = store.catalog();
  for (experts::LayerIndex layer = 0; layer < catalog.layer_count(); ++layer) {
    for (int32_t expert = 0; expert < catalog.expert_count_of(layer); ++expert) {
      if (store.Find(layer, expert) != nullptr) {
        kept.push_back({layer, expert});
      }
    }
  }
  FirstError error;
  pool.ParallelFor(static_cast<int64_t>(kept.size()), [&](int64_t index, int) {
    const auto [layer, expert] = kept[index];
    error.Record(
        model::PackExpertBlob(checkpoint, kernels, layer, expert, store.Blob(layer, expert)));
  });
  return error.status();
}

// The files of a packed directory as a source of all experts.
absl::StatusOr<experts::ExpertSource> OpenPackedFiles(const checkpoint::PackedExperts& packed) {
  experts::ExpertSource source{
      .kind = experts::SourceKind::kFile, .name = "file", .bytes = nullptr, .places = {}};
  std::vector<std::string> paths;
  for (const checkpoint::PackedLayer& layer : packed.layers) {
    std::vector<experts::BlobPlace>& places = source.places.emplace_back();
    if (layer.path.empty()) {
      continue;
    }
    for (int32_t expert = 0; expert < packed.expert_count; ++expert) {
      places.push_back({.is_there = true,
                        .object = static_cast<uint32_t>(paths.size()),
                        .offset = expert * packed.expert_bytes});
    }
    paths.push_back(layer.path);
  }
  ZP_ASSIGN_OR_RETURN(source.bytes, fabric::OpenFileSource(paths));
  return source;
}

// What another host keeps, where it lies in that host's memory.
experts::ExpertSource MemoryOf(const experts::Placement& placement, int32_t host) {
  experts::ExpertSource source{.kind = experts::SourceKind::kPeer,
                               .name = fmt::format("host {}", host),
                               .bytes = nullptr,
                               .places = {}};
  const experts::ExpertCatalog& catalog = placement.catalog();
  for (experts::LayerIndex layer = 0; layer < catalog.layer_count(); ++layer) {
    std::vector<experts::BlobPlace>& places = source.places.emplace_back();
    for (int32_t expert = 0; expert < catalog.expert_count_of(layer); ++expert) {
      const int64_t index = placement.ResidentIndex(host, layer, expert);
      places.push_back(
          {.is_there = index >= 0,
           .object = 0,
           .offset = static_cast<uint64_t>(std::max<int64_t>(index, 0)) * catalog.expert_bytes});
    }
  }
  return source;
}

std::vector<std::vector<uint64_t>> ChecksumsOf(const checkpoint::PackedExperts& packed) {
  std::vector<std::vector<uint64_t>> checksums;
  for (const checkpoint::PackedLayer& layer : packed.layers) {
    checksums.push_back(layer.checksums);
  }
  return checksums;
}

// What the store's host keeps, from the packed files and the peers that have it.
absl::Status ReadStore(const checkpoint::PackedExperts& packed,
                       const std::map<int32_t, std::string>& peers,
                       experts::ExpertStore& store) {
  std::vector<experts::ExpertSource> sources;
  for (const auto& [host, advertisement] : peers) {
    experts::ExpertSource& peer = sources.emplace_back(MemoryOf(store.placement(), host));
    if (auto bytes = fabric::OpenPeerSource(advertisement); bytes.ok()) {
      peer.bytes = *std::move(bytes);
    } else {
      base::log::warn("host {} cannot be read from: {}", host, base::MessageOf(bytes.status()));
    }
  }
  if (packed.has_files) {
    ZP_ASSIGN_OR_RETURN(sources.emplace_back(), OpenPackedFiles(packed));
  }
  return experts::LoadStore(store, std::move(sources), ChecksumsOf(packed));
}

// What the store's host keeps, read or packed.
absl::Status FillStore(const checkpoint::Checkpoint& checkpoint,
                       const std::optional<checkpoint::PackedExperts>& packed,
                       const std::map<int32_t, std::string>& peers,
                       const ops::Kernels& kernels,
                       base::ThreadPool& pool,
                       experts::ExpertStore& store) {
  if (packed.has_value()) {
    return ReadStore(*packed, peers, store);
  }
  if (store.placement().max_missing_count(store.host()) > 0) {
    return absl::ResourceExhaustedError(
        fmt::format("{}: its experts take {}, more than the expert memory. `zeroprefill pack` "
                    "makes a directory from which they stream",
                    checkpoint.directory(),
                    base::FormatBytes(static_cast<int64_t>(store.catalog().total_bytes()))));
  }
  return PackExperts(checkpoint, kernels, pool, store);
}

}  // namespace

int64_t AvailableMemoryBytes() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("MemAvailable:")) {
      return std::stoll(line.substr(line.find(':') + 1)) * 1024;
    }
  }
  return 0;
}

absl::Status CheckPlacement(const checkpoint::Checkpoint& checkpoint,
                            const HostModelOptions& options) {
  ZP_ASSIGN_OR_RETURN(const SharedExperts shared, ReadSharedExperts(checkpoint, options));
  return PlaceExperts(CatalogOf(checkpoint.spec(), shared.layout), options).status();
}

int64_t SpareMemoryBytes(int64_t reserved_bytes) {
  return std::max<int64_t>(0, AvailableMemoryBytes() - kSpareBytes - reserved_bytes);
}

absl::StatusOr<std::string> SharedFingerprint(const checkpoint::Checkpoint& checkpoint,
                                              const HostModelOptions& options) {
  ZP_ASSIGN_OR_RETURN(const SharedExperts shared, ReadSharedExperts(checkpoint, options));
  std::vector<uint64_t> checksums;
  for (const checkpoint::PackedLayer& layer : shared.packed.layers) {
    checksums.insert(checksums.end(), layer.checksums.begin(), layer.checksums.end());
  }
  std::ifstream config(checkpoint.directory() + "/config.json", std::ios::binary);
  const std::string config_text{std::istreambuf_iterator<char>(config), {}};
  return fmt::format("{} {} config {:016x} experts {:016x}",
                     spec::NameOf(options.activation_dtype),
                     shared.packed.layout,
                     base::Checksum(std::as_bytes(std::span(config_text))),
                     base::Checksum(std::as_bytes(std::span(checksums))));
}

absl::StatusOr<std::shared_ptr<const HostModel>> HostModel::Load(
    const checkpoint::Checkpoint& checkpoint, const HostModelOptions& options) {
  const int thread_count = options.thread_count > 0
                               ? options.thread_count
                               : static_cast<int>(std::thread::hardware_concurrency());
  base::ThreadPool pool(thread_count);
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ops::Kernels> kernels, MakeKernels(options, pool));
  const std::shared_ptr<HostModel> host(new HostModel);
  ZP_CHECK(options.host >= 0 && options.host < options.host_count) << options.host;
  ZP_CHECK(options.host_count == 1 || options.expert_memory_bytes.has_value())
      << "hosts agree on a placement only if they are told the same memory";
  host->options_ = options;
  // What is wrong with the files is found before the weights are read.
  if (!checkpoint.has_expert_tensors()) {
    ZP_ASSIGN_OR_RETURN(host->packed_, ReadPacked(checkpoint, *kernels));
    if (!host->packed_->has_files && options.peers.empty()) {
      return absl::NotFoundError(
          fmt::format("{}: the files of its experts are not there, nor another host that has them",
                      checkpoint.directory()));
    }
  } else if (options.host_count > 1) {
    return NotPacked(checkpoint);
  }
  host->expert_layout_ =
      kernels->expert_layout(checkpoint.spec().model_dim,
                             checkpoint.spec().expert_dim,
                             host->packed_.has_value() ? host->packed_->fp8_blocks : std::nullopt);
  ZP_ASSIGN_OR_RETURN(host->weights_, model::ModelWeights::Load(checkpoint, *kernels));
  const experts::ExpertCatalog catalog = CatalogOf(checkpoint.spec(), host->expert_layout_);
  ZP_ASSIGN_OR_RETURN(experts::Placement placement, PlaceExperts(catalog, options));
  const auto store = std::make_shared<experts::ExpertStore>(std::move(placement), options.host);
  ZP_RETURN_IF_ERROR(FillStore(checkpoint, host->packed_, options.peers, *kernels, pool, *store));
  host->store_ = store;
  base::log::info("experts: {} of {} in memory{}",
                  base::FormatBytes(static_cast<int64_t>(store->bytes().size())),
                  base::FormatBytes(static_cast<int64_t>(catalog.total_bytes())),
                  store->bytes().size() < catalog.total_bytes() ? ", the others are gathered" : "");
  if (host->packed_.has_value() && !host->packed_->has_files) {
    base::log::warn("{}: no files of experts; what no host keeps cannot be had",
                    checkpoint.directory());
  }
  return host;
}

double HostModel::resident_fraction() const {
  const experts::ExpertCatalog& catalog = store_->catalog();
  const int64_t all = int64_t{catalog.moe_layer_count()} * catalog.expert_count;
  return all == 0 ? 1
                  : static_cast<double>(placement().resident_count(options_.host)) /
                        static_cast<double>(all);
}

absl::StatusOr<std::unique_ptr<ops::Kernels>> HostModel::CreateKernels(
    base::ThreadPool& pool) const {
  return MakeKernels(options_, pool);
}

absl::StatusOr<std::unique_ptr<experts::ExpertGatherer>> HostModel::OpenExperts(
    int32_t rank, base::Trace* trace) const {
  std::vector<experts::ExpertSource> sources;
  std::vector<std::vector<uint64_t>> checksums;
  if (packed_.has_value() && placement().max_missing_count(options_.host) > 0) {
    for (int32_t host = 0; host < options_.host_count; ++host) {
      if (host != options_.host) {
        sources.push_back(MemoryOf(placement(), host));
      }
    }
    if (options_.streams_from_files && packed_->has_files) {
      ZP_ASSIGN_OR_RETURN(experts::ExpertSource files, OpenPackedFiles(*packed_));
      sources.push_back(std::move(files));
    }
    checksums = ChecksumsOf(*packed_);
  }
  return std::make_unique<experts::ExpertGatherer>(
      store_,
      std::move(sources),
      std::move(checksums),
      experts::ExpertGathererOptions{.window_slot_count = options_.window_slot_count,
                                     .rank = rank,
                                     .loop = options_.gather,
                                     .trace = trace});
}

}  // namespace zp::engine
