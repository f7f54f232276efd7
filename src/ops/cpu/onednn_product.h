// The matrix product by oneDNN, in bf16 or f32 (docs/decisions/0003-matrix-products.md).
//
// oneDNN runs on one thread inside a worker of our pool. One packed layout serves every number of
// rows: oneDNN is asked once, for a full block of rows, and then held to its answer. Primitives are
// kept for each worker, row count and panel shape; kRowBlock bounds how many there can be.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "ops/cpu/product.h"

namespace zp::ops::cpu {

class OneDnnProduct final : public Product {
 public:
  // `x_dtype` is kBf16 or kF32, `weight_dtype` that or kF32: rows of x are then widened first.
  OneDnnProduct(spec::DType x_dtype, spec::DType weight_dtype, int worker_count);
  ~OneDnnProduct() override;

  // oneDNN multiplies bf16 from AVX-512 on; below, everything is f32.
  static spec::DType WeightDTypeFor(spec::DType x_dtype);

  std::string name() const override;
  int64_t panel_columns() const override;
  size_t packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const override;
  void Pack(const ConstMatrix& weight,
            const ConstMatrix* up,
            std::span<std::byte> packed) const override;
  void Run(int worker,
           const ProductInput& input,
           const ProductWeight& weight,
           PanelRange panels,
           const ProductOutput& output) override;

 private:
  struct Worker;

  dnnl::memory::desc PanelDesc(int64_t columns, int64_t in_dim) const;
  // Rows of each call to oneDNN for a block of `rows` rows. With AMX always the same number (the
  // last call may multiply rows that nobody reads): oneDNN picks its kernel and cuts the sums by
  // the number of rows, and there the results differ in their last bits.
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
  const dnnl::engine engine_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int64_t, int64_t>, dnnl::memory::desc> panel_descs_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace zp::ops::cpu
