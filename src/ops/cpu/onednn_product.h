// A matrix product by oneDNN on one worker, in bf16 or f32, for a block of rows and a range of
// column panels, with what is done to its result while it is still in cache
// (docs/decisions/0003-matrix-products.md).
//
// A weight [out_dim, in_dim] is packed as panels of panel_columns() outputs, one after another, so
// that any range of panels is a product of its own. A gated weight joins two weights of one shape:
// output i of the gate lies beside output i of the up projection, and Run() yields silu(gate) * up.
//
// oneDNN runs on one thread inside a worker of our pool. One packed layout serves every number of
// rows: oneDNN is asked once, for a full block of rows, and then held to its answer. Primitives are
// kept for each worker, row count and panel shape; kRowBlock bounds how many there can be.
//
// Thread safety: packing and the queries are const and may run anywhere; Run(worker, ...) may run
// at once for different workers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
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
  int64_t first_panel = 0;  // the one that `data` begins with
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
// Blocks are cut at multiples of this: the rows of two AMX tiles.
inline constexpr int64_t kRowUnit = 32;
static_assert(kRowBlock % kRowUnit == 0);

// The blocks that `rows` rows are cut into, of about equal size: block i is the rows from
// RowBlockBegin(rows, i) to RowBlockBegin(rows, i + 1), at most kRowBlock.
inline int64_t RowBlockCount(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }
inline int64_t RowBlockBegin(int64_t rows, int64_t block) {
  const int64_t even_cut = rows * block / RowBlockCount(rows);
  return std::min(rows, (even_cut + kRowUnit - 1) / kRowUnit * kRowUnit);
}

class OneDnnProduct {
 public:
  // `x_dtype` is kBf16 or kF32, `weight_dtype` that or kF32: rows of x are then widened first.
  OneDnnProduct(spec::DType x_dtype, spec::DType weight_dtype, int worker_count);
  ~OneDnnProduct();

  // oneDNN multiplies bf16 from AVX-512 on; below, everything is f32.
  static spec::DType WeightDTypeFor(spec::DType x_dtype);

  spec::DType weight_dtype() const { return dtype_; }
  std::string name() const;
  // Names the packed form but for the panels' width; see Kernels::layout_name.
  std::string layout_name() const;
  // Outputs per panel; a gated panel holds half as many of each half.
  int64_t panel_columns() const { return panel_columns_; }
  int64_t panel_count(int64_t out_dim, bool gated) const;
  size_t packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const;
  // Where a panel begins among the packed bytes of a weight that has it.
  size_t PanelOffset(int64_t panel, int64_t in_dim) const;
  // `up` is null, or a gated weight's second half.
  void Pack(const ConstMatrix& weight, const ConstMatrix* up, std::span<std::byte> packed) const;
  // REQUIRES: input.rows <= kRowBlock.
  void Run(int worker,
           const ProductInput& input,
           const ProductWeight& weight,
           PanelRange panels,
           const ProductOutput& output);

 private:
  struct Worker;

  dnnl::memory::desc PanelDesc(int64_t columns, int64_t in_dim) const;
  // Outputs of a full panel, and columns of this one: a gated panel has two halves of equal width.
  int64_t PanelOutputs(bool gated) const;
  int64_t ColumnsOf(int64_t panel, int64_t out_dim, bool gated) const;
  // Rows of each call to oneDNN for a block of `rows` rows. With AMX, and in bf16 without bf16
  // instructions, always the same number (the last call may multiply rows that nobody reads):
  // oneDNN picks its kernel and cuts the sums by the number of rows, and there the results differ
  // in their last bits.
  int64_t CallRows(int64_t rows) const;
  // Puts the rows that oneDNN cannot read where they are into worker.rows, at their index, side by
  // side and in dtype_. Returns how many it can: those of the first calls.
  int64_t Gather(Worker& worker,
                 const ProductInput& input,
                 int64_t in_dim,
                 int64_t call_rows) const;
  // worker.sums = x [rows, in_dim] times a panel of `columns`.
  void Multiply(Worker& worker,
                const std::byte* x,
                int64_t rows,
                const std::byte* panel,
                int64_t columns,
                int64_t in_dim) const;

  const spec::DType x_dtype_;
  const spec::DType dtype_;  // of the weights, and of x as oneDNN sees it
  const dnnl::memory::data_type onednn_type_;
  const bool fixed_rows_;
  const int64_t panel_columns_;
  const dnnl::engine engine_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int64_t, int64_t>, dnnl::memory::desc> panel_descs_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace zp::ops::cpu
