// What the wind tunnel knows before it measures: pure functions of shapes, ranks and rates.
//
// Weights and activations have elements of `element_bytes`: 2 (bf16), or 4 (f32) where that is what
// a machine computes fast.
//
// Thread safety: free functions, no shared state.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "spec/model_spec.h"

namespace zp::apps {

// Rows of a layer's step, as the engines of the tunnel take them.
inline constexpr int64_t kTunnelChunkTokens = 8192;

// Rows that travel together under dispatch, of each rank. One after the other: as many as give an
// expert 1,024 rows of all ranks; more only take memory. Overlapped: fewer, so that a pass has
// several to overlap.
int64_t DispatchedRows(int32_t ranks, bool overlaps);

// Bytes of a rank's link per FLOP of the rank: "h100-nvlink" (990 TFLOP/s of bf16 over 450 GB/s of
// NVLink 4), "pcie5" (the same over 66 GB/s) or a number. Said for elements of two bytes: larger
// ones need so many times the bytes, or the elements per FLOP would not be those of the machine
// imitated. Each time, T* and the ratios come out the same.
absl::StatusOr<double> BytesPerFlop(const std::string& balance, int64_t element_bytes);

// How experts lie on the ranks of the tunnel.
struct TunnelPlacement {
  int32_t ranks = 2;
  int32_t redundancy = 1;  // copies of each expert; divides the ranks

  // So many neighbouring ranks keep every expert once between them.
  int32_t set_ranks() const { return ranks / redundancy; }
};

// Of a layer, on each rank.
int32_t KeptExperts(int32_t expert_count, const TunnelPlacement& placement);
// Bytes of a layer's experts that a rank does not keep.
double MissingBytes(const spec::ModelSpec& spec,
                    int64_t element_bytes,
                    const TunnelPlacement& placement);

// [expert_count]: where `rank` sends tokens under dispatch: to the ranks of its own set, so that
// copies save dispatch bytes as well. REQUIRES: ranks divide the experts.
std::vector<int32_t> DispatchOwners(int32_t expert_count,
                                    const TunnelPlacement& placement,
                                    int32_t rank);

// Ranks other than its own that a token travels to, its experts chosen evenly: every other rank
// of its set that holds at least one of them.
double CopiesPerToken(int32_t set_ranks, int32_t experts_per_token);

// What dispatch is expected to cost over gather at the same kernels' speed, when nobody waits for
// stragglers and nothing is overlapped: 1 + bytes_per_token * (F / B) * u / flops_per_token, rows
// there and back. `flops_per_s` is what a rank achieves, F * u.
double IdealRatio(const spec::ModelSpec& spec,
                  int64_t element_bytes,
                  const TunnelPlacement& placement,
                  double flops_per_s,
                  double link_bytes_per_s,
                  double context_tokens);

// The part of a core that each rank gets: 1 where every rank has a core of its own. Where a core is
// shared, a twentieth is left to the system, so that a quota is what limits a rank.
double CoresPerRank(int32_t ranks, int32_t cores);

struct TunnelMemory {
  int64_t rank_bytes = 0;    // of each rank: dense weights, share, window, activations
  int64_t shared_bytes = 0;  // once for all: every expert, for the resident strategy
  int64_t total_bytes(int32_t ranks) const { return ranks * rank_bytes + shared_bytes; }
};

struct TunnelUse {
  TunnelPlacement placement;
  int64_t element_bytes = 2;
  int64_t pass_tokens = 0;
  int32_t window_slots = 2;
  bool gathers = true;
  bool dispatches = true;  // each of the two has buffers of its own
  bool dispatches_overlapped = false;
  bool has_resident = true;
};

// An estimate from above, good to some ten percent.
TunnelMemory MemoryFor(const spec::ModelSpec& spec, const TunnelUse& use);

}  // namespace zp::apps
