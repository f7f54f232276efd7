// Which host keeps which expert of which layer in its memory.
//
// A pure function of the model, the memory each host gives and the number of hosts: every host
// computes the same answer and knows without asking where in another's memory an expert lies. More
// than one copy of an expert, and hosts that keep more than their share, are placements like any
// other. What no host keeps is read from the file.
//
// Within a host's budget lie the experts it keeps and the windows of its ranks, each of so many
// slots that hold what one layer misses. Every layer keeps the same number, give or take one: the
// slowest gather counts, so none should be longer than the others.
//
// Hosts keep runs of neighbouring experts, laid end to end round the circle of a layer's experts:
// with equal budgets each expert has as many copies as any other, give or take one.
//
// Thread safety: immutable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "experts/expert_catalog.h"

namespace zp::experts {

struct HostBudget {
  size_t expert_memory_bytes = 0;
  int32_t rank_count = 1;  // each has a window of its own
};

class Placement {
 public:
  // ResourceExhausted if a host's budget holds neither all experts nor the windows of its ranks;
  // the message names the least that would do. InvalidArgument if `window_slot_count` < 2, if there
  // is no host, or if the hosts together hold fewer than `redundancy` copies of every expert
  // (0: experts that nobody holds are welcome, a file has them).
  static absl::StatusOr<Placement> Compute(const ExpertCatalog& catalog,
                                           const std::vector<HostBudget>& hosts,
                                           int32_t window_slot_count,
                                           int32_t redundancy);

  // Everything on one host, nothing to gather.
  static Placement AllResident(const ExpertCatalog& catalog);

  const ExpertCatalog& catalog() const { return catalog_; }
  int32_t host_count() const { return static_cast<int32_t>(hosts_.size()); }

  // The place of an expert among those that the host keeps, counted over all layers, or -1: the
  // blob lies at that many expert_bytes in the host's memory.
  int64_t ResidentIndex(int32_t host, LayerIndex layer, int32_t expert) const;
  bool Keeps(int32_t host, LayerIndex layer, int32_t expert) const {
    return ResidentIndex(host, layer, expert) >= 0;
  }

  int64_t resident_count(int32_t host) const { return hosts_[host].layer_begin.back(); }
  // The experts of a layer that the host does not keep, in the order to fetch them: from the end of
  // its own run round the circle, so that no two hosts begin with the same peer.
  std::vector<int32_t> Missing(int32_t host, LayerIndex layer) const;
  int32_t max_missing_count(int32_t host) const;

 private:
  // A host keeps the experts first, first + 1, ... (count of them, modulo expert_count) of a layer.
  struct Run {
    int32_t first = 0;
    int32_t count = 0;
  };
  struct Host {
    std::vector<Run> runs;             // [layer]
    std::vector<int64_t> layer_begin;  // [layer + 1]: kept experts of the layers before
  };

  ExpertCatalog catalog_;
  std::vector<Host> hosts_;
};

}  // namespace zp::experts
