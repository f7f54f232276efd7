#include "experts/load_store.h"

#include <utility>

#include "experts/gather_loop.h"
#include "experts/source_wait.h"

namespace zp::experts {
namespace {

std::vector<BlobTarget> KeptBlobs(ExpertStore& store,
                                  LayerIndex layer,
                                  const std::vector<uint64_t>& checksums) {
  std::vector<BlobTarget> targets;
  for (int32_t expert = 0; expert < store.catalog().expert_count_of(layer); ++expert) {
    if (store.Find(layer, expert) != nullptr) {
      targets.push_back({.expert = expert,
                         .destination = store.Blob(layer, expert),
                         .checksum = checksums[expert]});
    }
  }
  return targets;
}

}  // namespace

absl::Status LoadStore(ExpertStore& store,
                       std::vector<ExpertSource> sources,
                       const std::vector<std::vector<uint64_t>>& checksums) {
  constexpr int32_t kSlot = 0;
  GatherLoop loop(std::move(sources),
                  /*slot_count=*/1,
                  /*verify_checksums=*/true,
                  WithSlicesFor(store.catalog().expert_bytes, {}));
  for (LayerIndex layer = 0; layer < store.catalog().layer_count(); ++layer) {
    const std::vector<BlobTarget> targets = KeptBlobs(store, layer, checksums[layer]);
    if (targets.empty()) {
      continue;
    }
    loop.Begin(kSlot, layer, targets, GatherLoop::Clock::now());
    while (!loop.IsDone(kSlot)) {
      if (!loop.Turn(GatherLoop::Clock::now())) {
        AwaitSources(loop.sources(), /*wake_fd=*/-1, loop.NextCheck(GatherLoop::Clock::now()));
      }
    }
    ZP_RETURN_IF_ERROR(loop.TakeDone(kSlot));
  }
  return absl::OkStatus();
}

}  // namespace zp::experts
