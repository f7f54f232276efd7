// Reading single numbers of any stored format as f32.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/bfloat16.h"
#include "base/float8.h"
#include "ops/matrix.h"
#include "spec/dtype.h"

namespace zp::ops {

// IEEE half precision to f32, exactly.
inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // The exponent's bias differs by 112; the product also makes a half's denormals normal.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
}

inline float LoadElement(const std::byte* data, spec::DType dtype, int64_t index) {
  if (dtype == spec::DType::kF32) {
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + index * 2, 2);
  return dtype == spec::DType::kF16 ? HalfToFloat(bits)
                                    : std::bit_cast<float>(uint32_t{bits} << 16);
}

inline float LoadElement(const ConstMatrix& matrix, int64_t row, int64_t col) {
  return LoadElement(matrix.data, matrix.dtype, row * matrix.row_stride + col);
}

inline float LoadElement(const Fp8Matrix& matrix, int64_t row, int64_t col) {
  const auto bits = static_cast<uint8_t>(matrix.numbers[row * matrix.cols + col]);
  return base::kFp8Values[bits] * matrix.scales[matrix.blocks.ScaleIndex(row, col, matrix.cols)];
}

// Stores to bf16 or f32.
inline void StoreElement(const Matrix& matrix, int64_t row, int64_t col, float value) {
  const int64_t index = row * matrix.row_stride + col;
  if (matrix.dtype == spec::DType::kF32) {
    std::memcpy(matrix.data + index * 4, &value, 4);
  } else {
    const base::BFloat16 rounded(value);
    std::memcpy(matrix.data + index * 2, &rounded, 2);
  }
}

}  // namespace zp::ops
