// Number formats of weights and activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace zp::spec {

enum class DType { kBf16, kF16, kF32 };

constexpr size_t SizeOf(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

constexpr std::string_view NameOf(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kF32:
      return "f32";
  }
  return "?";
}

// The blocks of a matrix of 8-bit numbers (base/float8.h) that have one f32 scale each:
// weight[r][c] = number[r][c] * scale[r / rows][c / cols], rounded to f32. Scales lie row-major.
struct Fp8Blocks {
  int64_t rows = 0;
  int64_t cols = 0;

  bool operator==(const Fp8Blocks&) const = default;
  int64_t ScaleRows(int64_t matrix_rows) const { return (matrix_rows + rows - 1) / rows; }
  int64_t ScaleCols(int64_t matrix_cols) const { return (matrix_cols + cols - 1) / cols; }
  int64_t ScaleCount(int64_t matrix_rows, int64_t matrix_cols) const {
    return ScaleRows(matrix_rows) * ScaleCols(matrix_cols);
  }
  // Of the number at [row][col] of a matrix of `matrix_cols` columns.
  int64_t ScaleIndex(int64_t row, int64_t col, int64_t matrix_cols) const {
    return row / rows * ScaleCols(matrix_cols) + col / cols;
  }
};

}  // namespace zp::spec
