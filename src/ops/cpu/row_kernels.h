// SIMD work on single rows, compiled for each kind of x86-64 CPU and chosen at run time (Highway).
//
// A result depends on the row alone: sums run over lanes in an order that only the row's length
// fixes. `dtype` is kBf16 or kF32 wherever rows of both kinds are written. NaN passes through.
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/matrix.h"

namespace zp::ops::cpu {

// f32 -> dtype.
void ConvertRow(const float* from, int64_t count, spec::DType dtype, std::byte* to);
// Any dtype -> f32.
void WidenRow(const std::byte* from, spec::DType dtype, int64_t count, float* to);
// y += weight * x
void AddScaledRow(const float* x, float weight, int64_t count, float* y);
// y = silu(gate) * up
void SiluMultiplyRow(
    const float* gate, const float* up, int64_t count, spec::DType dtype, std::byte* y);
// y = x / sqrt(mean(x^2) + epsilon) * weight
void RmsNormRow(const float* x,
                const float* weight,
                float epsilon,
                int64_t count,
                spec::DType dtype,
                std::byte* y);

// The heads of one row, in place: norm with `norm_weight` [head_dim] unless null, then rotation by
// the angles whose `cos` and `sin` [half_dim] are given.
struct HeadRow {
  std::byte* heads = nullptr;
  spec::DType dtype = spec::DType::kF32;
  int64_t head_count = 0;
  int64_t head_dim = 0;
  const float* norm_weight = nullptr;
  float epsilon = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t half_dim = 0;
};
void NormRotateRow(const HeadRow& row);

// The sum of e^(x - largest) over a row, and whether it holds a NaN (the sum is then NaN).
struct ExpSum {
  float largest = 0;
  double sum = 0;
};
ExpSum SumOfExp(const float* x, int64_t count);

// The first index in [begin, count) whose value is not <= bound (NaN included), or `count`.
int64_t FindAbove(const float* x, int64_t begin, int64_t count, float bound);

// x . y, y of any dtype.
float DotRow(const float* x, const std::byte* y, spec::DType dtype, int64_t count);

}  // namespace zp::ops::cpu
