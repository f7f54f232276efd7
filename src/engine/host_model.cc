#include "engine/host_model.h"

#include <algorithm>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/logging.h"
#include "base/units.h"
#include "experts/expert_gatherer.h"
#include "fmt/format.h"
#include "model/expert_blob.h"
#include "ops/cpu/cpu_kernels.h"
#include "ops/reference/reference_kernels.h"

namespace zp::engine {
namespace {

constexpr int32_t kThisHost = 0;
// Left to activations, the prefix cache of the system's files and everything else.
constexpr int64_t kSpareBytes = int64_t{3} << 30;

absl::StatusOr<std::unique_ptr<ops::Kernels>> MakeKernels(const HostModelOptions& options,
                                                          base::ThreadPool& pool) {
  if (options.backend == Backend::kReference) {
    return ops::reference::CreateKernels();
  }
  return ops::cpu::CreateKernels(options.activation_dtype, pool);
}

// What the system says it could give without swapping.
int64_t AvailableMemoryBytes() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("MemAvailable:")) {
      return std::stoll(line.substr(line.find(':') + 1)) * 1024;
    }
  }
  return 0;
}

experts::ExpertCatalog CatalogOf(const spec::ModelSpec& spec, const ops::ExpertLayout& layout) {
  return {.layer_has_experts = spec.layer_is_moe,
          .expert_count = spec.expert_count,
          .expert_bytes = layout.bytes};
}

absl::StatusOr<experts::Placement> PlaceExperts(const experts::ExpertCatalog& catalog,
                                                const HostModelOptions& options) {
  const int64_t spare = std::max<int64_t>(0, AvailableMemoryBytes() - kSpareBytes);
  const int64_t budget = options.expert_memory_bytes.value_or(spare);
  return experts::Placement::Compute(
      catalog,
      {{.expert_memory_bytes = static_cast<size_t>(budget), .rank_count = options.rank_count}},
      options.window_slot_count,
      /*redundancy=*/0);
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
absl::Status LoadExperts(const checkpoint::Checkpoint& checkpoint,
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

}  // namespace

absl::StatusOr<std::shared_ptr<const HostModel>> HostModel::Load(
    const checkpoint::Checkpoint& checkpoint, const HostModelOptions& options) {
  const int thread_count = options.thread_count > 0
                               ? options.thread_count
                               : static_cast<int>(std::thread::hardware_concurrency());
  base::ThreadPool pool(thread_count);
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ops::Kernels> kernels, MakeKernels(options, pool));
  const std::shared_ptr<HostModel> host(new HostModel);
  host->options_ = options;
  ZP_ASSIGN_OR_RETURN(host->weights_, model::ModelWeights::Load(checkpoint, *kernels));
  const experts::ExpertCatalog catalog =
      CatalogOf(checkpoint.spec(), host->weights_->expert_layout());
  ZP_ASSIGN_OR_RETURN(experts::Placement placement, PlaceExperts(catalog, options));
  const bool all_kept = placement.max_missing_count(kThisHost) == 0;
  if (!all_kept) {
    return absl::ResourceExhaustedError(fmt::format(
        "{}: the experts take {}, more than the expert memory; `zeroprefill pack` makes a "
        "directory from which they stream",
        checkpoint.directory(),
        base::FormatBytes(static_cast<int64_t>(catalog.total_bytes()))));
  }
  const auto store = std::make_shared<experts::ExpertStore>(std::move(placement), kThisHost);
  ZP_RETURN_IF_ERROR(LoadExperts(checkpoint, *kernels, pool, *store));
  host->store_ = store;
  return host;
}

double HostModel::resident_fraction() const {
  const experts::ExpertCatalog& catalog = store_->catalog();
  const int64_t all = int64_t{catalog.moe_layer_count()} * catalog.expert_count;
  return all == 0 ? 1
                  : static_cast<double>(placement().resident_count(kThisHost)) /
                        static_cast<double>(all);
}

absl::StatusOr<std::unique_ptr<ops::Kernels>> HostModel::CreateKernels(
    base::ThreadPool& pool) const {
  return MakeKernels(options_, pool);
}

absl::StatusOr<std::unique_ptr<experts::ExpertProvider>> HostModel::OpenExperts(
    int32_t rank, base::Trace* trace) const {
  std::vector<experts::ExpertSource> sources;
  return std::make_unique<experts::ExpertGatherer>(
      store_,
      std::move(sources),
      std::vector<std::vector<uint64_t>>{},
      experts::ExpertGathererOptions{
          .window_slot_count = options_.window_slot_count, .rank = rank, .trace = trace});
}

}  // namespace zp::engine
