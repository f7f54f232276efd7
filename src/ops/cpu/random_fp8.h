// Matrices of random 8-bit numbers, owned, for tests and benchmarks of the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "base/float8.h"
#include "ops/cpu/random_matrix.h"
#include "ops/element.h"
#include "ops/matrix.h"

namespace zp::ops::cpu {

struct OwnedFp8 {
  std::vector<std::byte> numbers;
  std::vector<float> scales;
  int64_t rows = 0;
  int64_t cols = 0;
  spec::Fp8Blocks blocks;

  Fp8Matrix view() const { return {numbers.data(), scales.data(), rows, cols, blocks}; }
};

// Any numbers but NaN, denormals, -0 and 448 among them; the scales make them about `magnitude`.
inline OwnedFp8 RandomFp8(std::mt19937& random,
                          int64_t rows,
                          int64_t cols,
                          const spec::Fp8Blocks& blocks,
                          float magnitude = 1.0f) {
  OwnedFp8 matrix{.numbers = {}, .scales = {}, .rows = rows, .cols = cols, .blocks = blocks};
  for (int64_t i = 0; i < rows * cols; ++i) {
    const uint32_t drawn = random() % 254;
    matrix.numbers.push_back(static_cast<std::byte>(drawn < base::kFp8Nan ? drawn : drawn + 1));
  }
  std::uniform_real_distribution<float> factor(0.001f, 0.02f);
  for (int64_t i = 0; i < blocks.ScaleCount(rows, cols); ++i) {
    matrix.scales.push_back(magnitude * factor(random));
  }
  return matrix;
}

// What it stands for, in f32.
inline OwnedMatrix Widened(const OwnedFp8& matrix) {
  OwnedMatrix wide = MakeMatrix(spec::DType::kF32, matrix.rows, matrix.cols);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t col = 0; col < matrix.cols; ++col) {
      StoreElement(wide.view, row, col, LoadElement(matrix.view(), row, col));
    }
  }
  return wide;
}

}  // namespace zp::ops::cpu
