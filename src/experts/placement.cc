#include "experts/placement.h"

#include <algorithm>

#include "base/units.h"
#include "fmt/format.h"

namespace zp::experts {
namespace {

// How many experts of each layer fit beside the windows; the first `layers_with_one_more` layers
// keep one more.
struct Share {
  int32_t per_layer = 0;
  int32_t layers_with_one_more = 0;
};

absl::StatusOr<Share> ShareOf(const ExpertCatalog& catalog,
                              const HostBudget& host,
                              int32_t window_slot_count) {
  const int64_t layers = catalog.moe_layer_count();
  const int64_t experts = catalog.expert_count;
  const auto fitting = static_cast<int64_t>(host.expert_memory_bytes / catalog.expert_bytes);
  if (fitting >= layers * experts) {
    return Share{.per_layer = catalog.expert_count};
  }
  // Keeping n of each layer takes layers * n + slots * (experts - n).
  const int64_t slots = int64_t{host.rank_count} * window_slot_count;
  const int64_t windows = slots * experts;
  if (layers <= slots || fitting < windows) {
    const int64_t least = std::min(windows, layers * experts);
    return absl::ResourceExhaustedError(
        fmt::format("expert memory of {} is too little: {} ranks with windows of {} layers need {}",
                    base::FormatBytes(host.expert_memory_bytes),
                    host.rank_count,
                    window_slot_count,
                    base::FormatBytes(static_cast<size_t>(least) * catalog.expert_bytes)));
  }
  Share share;
  share.per_layer = static_cast<int32_t>((fitting - windows) / (layers - slots));
  const int64_t used = layers * share.per_layer + slots * (experts - share.per_layer);
  share.layers_with_one_more = static_cast<int32_t>(std::min(fitting - used, layers));
  return share;
}

absl::Status CheckCopies(const ExpertCatalog& catalog,
                         const Placement& placement,
                         int32_t redundancy) {
  for (LayerIndex layer = 0; layer < catalog.layer_count(); ++layer) {
    for (int32_t expert = 0; expert < catalog.expert_count_of(layer); ++expert) {
      int32_t copies = 0;
      for (int32_t host = 0; host < placement.host_count(); ++host) {
        copies += placement.Keeps(host, layer, expert) ? 1 : 0;
      }
      if (copies < redundancy) {
        return absl::InvalidArgumentError(fmt::format(
            "redundancy is {}, but the hosts' expert memory holds only {} copies of expert {} of "
            "layer {}",
            redundancy,
            copies,
            expert,
            layer));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Placement> Placement::Compute(const ExpertCatalog& catalog,
                                             const std::vector<HostBudget>& hosts,
                                             int32_t window_slot_count,
                                             int32_t redundancy) {
  if (window_slot_count < 2) {
    return absl::InvalidArgumentError(fmt::format(
        "window of {} slots: one layer computes while the next arrives, so it needs at least 2",
        window_slot_count));
  }
  if (hosts.empty()) {
    return absl::InvalidArgumentError("a placement needs at least one host");
  }
  Placement placement;
  placement.catalog_ = catalog;
  std::vector<int32_t> next_first(catalog.layer_count(), 0);  // where the next host's run begins
  for (const HostBudget& budget : hosts) {
    ZP_ASSIGN_OR_RETURN(const Share share, ShareOf(catalog, budget, window_slot_count));
    Host host;
    host.layer_begin.push_back(0);
    int32_t moe_layer = 0;
    for (LayerIndex layer = 0; layer < catalog.layer_count(); ++layer) {
      Run run;
      if (catalog.layer_has_experts[layer]) {
        run.count = share.per_layer + (moe_layer++ < share.layers_with_one_more ? 1 : 0);
        run.first = next_first[layer];
        next_first[layer] = (run.first + run.count) % catalog.expert_count;
      }
      host.runs.push_back(run);
      host.layer_begin.push_back(host.layer_begin.back() + run.count);
    }
    placement.hosts_.push_back(std::move(host));
  }
  ZP_RETURN_IF_ERROR(CheckCopies(catalog, placement, redundancy));
  return placement;
}

Placement Placement::AllResident(const ExpertCatalog& catalog) {
  return *Compute(catalog, {{.expert_memory_bytes = catalog.total_bytes()}}, 2, 0);
}

int64_t Placement::ResidentIndex(int32_t host, LayerIndex layer, int32_t expert) const {
  const Run& run = hosts_[host].runs[layer];
  const int32_t place = (expert - run.first + catalog_.expert_count) % catalog_.expert_count;
  return place < run.count ? hosts_[host].layer_begin[layer] + place : -1;
}

std::vector<int32_t> Placement::Missing(int32_t host, LayerIndex layer) const {
  const Run& run = hosts_[host].runs[layer];
  std::vector<int32_t> missing;
  for (int32_t place = run.count; place < catalog_.expert_count_of(layer); ++place) {
    missing.push_back((run.first + place) % catalog_.expert_count);
  }
  return missing;
}

int32_t Placement::max_missing_count(int32_t host) const {
  int32_t most = 0;
  for (LayerIndex layer = 0; layer < catalog_.layer_count(); ++layer) {
    most = std::max(most, catalog_.expert_count_of(layer) - hosts_[host].runs[layer].count);
  }
  return most;
}

}  // namespace zp::experts
