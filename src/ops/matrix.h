// Views of row-major matrices: memory that somebody else owns, with its shape and number format.
#pragma once

#include <cstddef>
#include <cstdint>

#include "spec/dtype.h"

namespace zp::ops {

struct ConstMatrix {
  const std::byte* data = nullptr;
  spec::DType dtype = spec::DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // in elements; at least cols

  template <typename T>
  const T* row(int64_t index) const {
    return reinterpret_cast<const T*>(data) + index * row_stride;
  }
  ConstMatrix Rows(int64_t begin, int64_t count) const {
    return {data + begin * row_stride * static_cast<int64_t>(spec::SizeOf(dtype)),
            dtype,
            count,
            cols,
            row_stride};
  }
};

struct Matrix {
  std::byte* data = nullptr;
  spec::DType dtype = spec::DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;

  template <typename T>
  T* row(int64_t index) const {
    return reinterpret_cast<T*>(data) + index * row_stride;
  }
  Matrix Rows(int64_t begin, int64_t count) const {
    return {data + begin * row_stride * static_cast<int64_t>(spec::SizeOf(dtype)),
            dtype,
            count,
            cols,
            row_stride};
  }
  Matrix Columns(int64_t begin, int64_t count) const {
    return {
        data + begin * static_cast<int64_t>(spec::SizeOf(dtype)), dtype, rows, count, row_stride};
  }
  operator ConstMatrix() const { return {data, dtype, rows, cols, row_stride}; }
};

// A matrix of 8-bit numbers with scales, see spec::Fp8Blocks.
struct Fp8Matrix {
  const std::byte* numbers = nullptr;  // [rows, cols], row-major, without gaps
  const float* scales = nullptr;       // [blocks.ScaleRows(rows), blocks.ScaleCols(cols)]
  int64_t rows = 0;
  int64_t cols = 0;
  spec::Fp8Blocks blocks;
};

}  // namespace zp::ops
