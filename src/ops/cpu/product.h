// A matrix product on one worker, for a block of rows and a range of column panels, with what is
// done to its result while it is still in registers or cache.
//
// OneDnnProduct does it; docs/decisions/0003-matrix-products.md tells why no kernel of our own
// does.
//
// A weight [out_dim, in_dim] is packed as panels of panel_columns() outputs, one after another, so
// that any range of panels is a product of its own. A gated weight joins two weights of one shape:
// output i of the gate lies beside output i of the up projection, and Run() yields silu(gate) * up.
//
// Thread safety: packing and the queries are const and may run anywhere; Run(worker, ...) may run
// at once for different workers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "ops/matrix.h"

namespace zp::ops::cpu {

// `rows` rows of x in the product's dtype: row i is the matrix' row ids[i], or row i if `ids` is
// null.
struct ProductInput {
  const std::byte* data = nullptr;
  int64_t row_stride = 0;  // in elements
  const int32_t* ids = nullptr;
  int64_t rows = 0;
};

struct ProductWeight {
  const std::byte* data = nullptr;
  int64_t out_dim = 0;  // of a gated weight: of each half
  int64_t in_dim = 0;
  bool gated = false;
};

struct PanelRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Where result row i goes: to row ids[i], or to row i if `ids` is null.
struct ProductOutput {
  std::byte* data = nullptr;
  spec::DType dtype = spec::DType::kF32;  // bf16 or f32
  int64_t row_stride = 0;
  const int32_t* ids = nullptr;
  bool add = false;                // add to what is there; f32 only
  const float* weights = nullptr;  // with `add`: row i counts weights[i] times; null is 1
};

// Rows of a block: enough to stream the weights rarely, few enough for the block to stay in L2.
inline constexpr int64_t kRowBlock = 256;

class Product {
 public:
  virtual ~Product() = default;

  virtual std::string name() const = 0;
  // Names the packed form but for the panels' width; see Kernels::layout_name.
  virtual std::string layout_name() const = 0;
  // Outputs per panel; a gated panel holds half as many of each half.
  virtual int64_t panel_columns() const = 0;
  virtual size_t packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const = 0;
  // `up` is null, or a gated weight's second half.
  virtual void Pack(const ConstMatrix& weight,
                    const ConstMatrix* up,
                    std::span<std::byte> packed) const = 0;
  // REQUIRES: input.rows <= kRowBlock.
  virtual void Run(int worker,
                   const ProductInput& input,
                   const ProductWeight& weight,
                   PanelRange panels,
                   const ProductOutput& output) = 0;

  int64_t panel_count(int64_t out_dim, bool gated) const {
    const int64_t outputs = gated ? panel_columns() / 2 : panel_columns();
    return (out_dim + outputs - 1) / outputs;
  }
};

}  // namespace zp::ops::cpu
