// Matrices of random numbers, owned, for tests and benchmarks of the kernels.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "memory/buffer.h"
#include "ops/element.h"
#include "ops/matrix.h"

namespace zp::ops::cpu {

struct OwnedMatrix {
  memory::Buffer buffer;
  Matrix view;
};

inline OwnedMatrix MakeMatrix(spec::DType dtype, int64_t rows, int64_t cols) {
  memory::Buffer buffer(static_cast<size_t>(rows * cols) * spec::SizeOf(dtype) + 64, "test");
  const Matrix view{buffer.data(), dtype, rows, cols, cols};
  return {std::move(buffer), view};
}

// Normal deviates times `scale`; kBf16 or kF32. All are rounded to bf16, so that one set of values
// can be given to kernels of both kinds.
inline OwnedMatrix RandomMatrix(
    std::mt19937& random, spec::DType dtype, int64_t rows, int64_t cols, float scale = 1.0f) {
  OwnedMatrix matrix = MakeMatrix(dtype, rows, cols);
  std::normal_distribution<float> normal(0.0f, scale);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      StoreElement(matrix.view, row, col, static_cast<float>(base::BFloat16(normal(random))));
    }
  }
  return matrix;
}

inline OwnedMatrix CopyAs(spec::DType dtype, const ConstMatrix& matrix) {
  OwnedMatrix copy = MakeMatrix(dtype, matrix.rows, matrix.cols);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t col = 0; col < matrix.cols; ++col) {
      StoreElement(copy.view, row, col, LoadElement(matrix, row, col));
    }
  }
  return copy;
}

}  // namespace zp::ops::cpu
