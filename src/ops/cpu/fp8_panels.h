// Weights of 8-bit numbers in the order of a OneDnnProduct's packed panels, one byte each, and the
// plans by which the product widens them in one pass over the bytes.
//
// The order is oneDNN's own and not looked into: whatever permutation packing is, bytes are sent
// through it as numbers. So is, once for each shape, the index of the scale that each number has;
// what comes out is kept as runs of numbers with the same scale, thousands long for blocks of 128.
//
// Thread safety: everything is const and may run anywhere.
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

class Fp8Panels {
 public:
  // `product` must outlive it.
  explicit Fp8Panels(const OneDnnProduct& product);

  size_t packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const;
  // The numbers alone; `up` is null, or a gated weight's second half.
  void Pack(const Fp8Matrix& weight, const Fp8Matrix* up, std::span<std::byte> packed) const;

  // The same object for the same shape and blocks; `out_dim` of a gated weight is that of each
  // half.
  const WidenPlan& PlanFor(int64_t out_dim,
                           int64_t in_dim,
                           bool gated,
                           const spec::Fp8Blocks& blocks) const;

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
