// A matrix product by oneDNN on one worker, in bf16 or f32, for some rows and a range of column
// panels, with what is done to its result while it is still in cache
// (docs/decisions/0003-matrix-products.md).
//
// A weight [out_dim, in_dim] is packed as panels of panel_columns() outputs, one after another, so
// that any range of panels is a product of its own. A gated weight joins two weights of one shape:
// output i of the gate lies beside output i of the up projection, and Run() yields silu(gate) * up.
//
// Numbers may be smaller at rest than in the product: bf16 weights on a CPU that multiplies no bf16
// (docs/decisions/0026-bf16-widened-for-f32-products.md), and weights of 8 bits. They lie in the
// order of the product's panels. A run widens one panel at a time, into memory that stays in the
// cache, and multiplies all its rows by it before it takes the next.
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
#include "ops/cpu/fp8_widen.h"
#include "ops/matrix.h"

namespace zp::ops::cpu {

// `rows` rows of x in the weights' dtype: row i is the matrix' row ids[i], or row i if `ids` is
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
  // Of 8-bit numbers, as Fp8Panels packs them: how they are widened, and their scales.
  const WidenPlan* fp8_plan = nullptr;
  const float* fp8_scales = nullptr;
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
// Where panels are widened, a run has so many blocks: enough for widening to be little beside
// multiplying, few enough for the rows of one expert to be shared among threads.
inline constexpr int64_t kWidenedRunBlocks = 4;

// The blocks that `rows` rows are cut into, of about equal size: block i is the rows from
// RowBlockBegin(rows, i) to RowBlockBegin(rows, i + 1), at most kRowBlock.
inline int64_t RowBlockCount(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }
inline int64_t RowBlockBegin(int64_t rows, int64_t block) {
  const int64_t even_cut = rows * block / RowBlockCount(rows);
  return std::min(rows, (even_cut + kRowUnit - 1) / kRowUnit * kRowUnit);
}

// The runs that `rows` rows are cut into, of at most `blocks_per_run` blocks each.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};
inline int64_t RowRunCount(int64_t rows, int64_t blocks_per_run) {
  return (RowBlockCount(rows) + blocks_per_run - 1) / blocks_per_run;
}
inline RowRange RowRun(int64_t rows, int64_t run, int64_t blocks_per_run) {
  const int64_t end_block = std::min((run + 1) * blocks_per_run, RowBlockCount(rows));
  return {RowBlockBegin(rows, run * blocks_per_run), RowBlockBegin(rows, end_block)};
}

class OneDnnProduct {
 public:
  // `dtype`, kBf16 or kF32, is that of x and of packed weights; `product_dtype`, that or kF32, the
  // one they are multiplied in. REQUIRES: FastestFor(kBf16) == kBf16 if product_dtype is kBf16.
  OneDnnProduct(spec::DType dtype, spec::DType product_dtype, int worker_count);
  ~OneDnnProduct();

  // What numbers of `dtype` are best multiplied in: bf16 only where the CPU has instructions for
  // it. oneDNN emulates them elsewhere, several times slower than it multiplies f32.
  static spec::DType FastestFor(spec::DType dtype);

  spec::DType dtype() const { return dtype_; }
  spec::DType product_dtype() const { return product_dtype_; }
  std::string name() const;
  // Names the packed form but for the panels' width; see Kernels::layout_name.
  std::string layout_name() const;
  // Outputs per panel; a gated panel holds half as many of each half.
  int64_t panel_columns() const { return panel_columns_; }
  int64_t panel_count(int64_t out_dim, bool gated) const;
  size_t packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const;
  // Where a panel begins among the numbers of a packed weight that has it.
  size_t PanelBegin(int64_t panel, int64_t in_dim) const;
  // Blocks of rows for which Run() is best called at once: more than one if it widens.
  int64_t blocks_per_run(bool is_fp8) const {
    return is_fp8 || dtype_ != product_dtype_ ? kWidenedRunBlocks : 1;
  }
  // `up` is null, or a gated weight's second half.
  void Pack(const ConstMatrix& weight, const ConstMatrix* up, std::span<std::byte> packed) const;
  // REQUIRES: input.rows <= kWidenedRunBlocks * kRowBlock.
  void Run(int worker,
           const ProductInput& input,
           const ProductWeight& weight,
           PanelRange panels,
           const ProductOutput& output);

 private:
  struct Worker;

  dnnl::memory::desc PanelDesc(int64_t columns, int64_t in_dim) const;
  size_t PanelNumbers(int64_t columns, int64_t in_dim) const;
  // Outputs of a full panel, and columns of this one: a gated panel has two halves of equal width.
  int64_t PanelOutputs(bool gated) const;
  int64_t ColumnsOf(int64_t panel, int64_t out_dim, bool gated) const;
  // The calls to oneDNN for a run of `rows` rows: one for each block, or, with AMX, for each
  // kRowUnit rows, never more or fewer (the last call may multiply rows that nobody reads): oneDNN
  // picks its kernel and cuts the sums by the number of rows, and there the results differ in their
  // last bits.
  int64_t CallCount(int64_t rows) const;
  RowRange CallRows(int64_t rows, int64_t call) const;
  // Puts the rows that oneDNN cannot read where they are into worker.rows, at their index, side by
  // side and in product_dtype_. Returns how many it can: those of the first calls.
  int64_t Gather(Worker& worker, const ProductInput& input, int64_t in_dim) const;
  // A panel as oneDNN reads it: where it lies, or widened into worker.panel.
  const std::byte* PanelOf(Worker& worker, const ProductWeight& weight, int64_t panel) const;
  // worker.sums = x [rows, in_dim] times a panel of `columns`.
  void Multiply(Worker& worker,
                const std::byte* x,
                int64_t rows,
                const std::byte* panel,
                int64_t columns,
                int64_t in_dim) const;

  const spec::DType dtype_;          // of x, and of weights at rest
  const spec::DType product_dtype_;  // of both as oneDNN sees them
  const dnnl::memory::data_type onednn_type_;
  const bool fixed_rows_;
  const int64_t panel_columns_;
  const dnnl::engine engine_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int64_t, int64_t>, dnnl::memory::desc> panel_descs_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace zp::ops::cpu
