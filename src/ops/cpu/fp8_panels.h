// Weights of 8-bit numbers in the order of a OneDnnProduct's packed panels, one byte each, and what
// widens them into those panels in one pass over the bytes.
//
// The order is oneDNN's own and not looked into: whatever permutation packing is, bytes are sent
// through it as numbers. So is, once for each shape, the index of the scale that each number has;
// what comes out is kept as runs of numbers with the same scale, thousands long for blocks of 128.
//
// Thread safety: Pack and the queries are const and may run anywhere, PlanFor among them; Widen may
// run at once on many threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "ops/cpu/onednn_product.h"
#include "ops/matrix.h"

namespace zp::ops::cpu {

// Consecutive numbers of a packed weight with the same scale.
struct ScaleRun {
  static constexpr int32_t kPadding = -1;  // zeros that belong to no number of the weight

  uint32_t count = 0;
  int32_t scale = 0;  // index among the weight's scales
};

// How a weight of one shape is widened. A gated weight's scales are those of the gate, then those
// of the up projection.
struct WidenPlan {
  std::vector<ScaleRun> runs;         // in the order of the packed numbers
  std::vector<size_t> first_runs;     // of each panel, and the end of all
  std::vector<size_t> first_numbers;  // of each panel, and the end of all
};

class Fp8Panels {
 public:
  // `product` must outlive it.
  explicit Fp8Panels(const OneDnnProduct& product);

  size_t packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const;
  // Bytes of some panels once widened.
  size_t widened_bytes(const WidenPlan& plan, PanelRange panels) const;

  // The numbers alone; `up` is null, or a gated weight's second half.
  void Pack(const Fp8Matrix& weight, const Fp8Matrix* up, std::span<std::byte> packed) const;

  // The same object for the same shape and blocks; `out_dim` of a gated weight is that of each
  // half.
  const WidenPlan& PlanFor(int64_t out_dim,
                           int64_t in_dim,
                           bool gated,
                           const spec::Fp8Blocks& blocks) const;

  // `panels` of packed numbers as the product's own Pack had written them of the widened weight.
  // `widened` is widened_bytes() long and 64-byte aligned.
  void Widen(const WidenPlan& plan,
             const std::byte* packed,
             const float* scales,
             PanelRange panels,
             std::byte* widened) const;

 private:
  using PlanKey = std::tuple<int64_t, int64_t, bool, int64_t, int64_t>;

  void PackBytes(std::span<const std::byte> weight,
                 std::span<const std::byte> up,
                 int64_t in_dim,
                 std::span<std::byte> packed) const;
  WidenPlan MakePlan(int64_t out_dim,
                     int64_t in_dim,
                     bool gated,
                     const spec::Fp8Blocks& blocks) const;

  const OneDnnProduct& product_;
  mutable std::mutex mutex_;
  mutable std::map<PlanKey, WidenPlan> plans_;
};

}  // namespace zp::ops::cpu
