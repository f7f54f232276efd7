// 8-bit numbers times their scales, as the numbers of a product's panels.
//
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "spec/dtype.h"

namespace zp::ops::cpu {

// Consecutive numbers of a packed weight with the same scale.
struct ScaleRun {
  static constexpr int32_t kPadding = -1;  // zeros that belong to no number of the weight

  uint32_t count = 0;
  int32_t scale = 0;  // index among the weight's scales
};

// How a weight of one shape is widened. A gated weight's scales are those of the gate, then those
// of the up projection.
struct WidenPlan {
  std::vector<ScaleRun> runs;         // in the order of the packed numbers
  std::vector<size_t> first_runs;     // of each panel, and the end of all
  std::vector<size_t> first_numbers;  // of each panel, and the end of all
};

// bf16 or f32 each; what is rounded to f32 is stored as f32.
struct WideDTypes {
  spec::DType rounded = spec::DType::kF32;
  spec::DType stored = spec::DType::kF32;
};

// One panel of `packed`, as the product's Pack wrote it of the weight rounded to dtypes.rounded, in
// dtypes.stored. `wide` is 64-byte aligned.
void WidenFp8Panel(const WidenPlan& plan,
                   int64_t panel,
                   const std::byte* packed,
                   const float* scales,
                   WideDTypes dtypes,
                   std::byte* wide);

// wide[i] = numbers[i] * scale, rounded to f32 and then to dtypes.rounded, to the bit; there are no
// NaN among the numbers, and none of the products is infinite.
void WidenFp8(
    const std::byte* numbers, int64_t count, float scale, WideDTypes dtypes, std::byte* wide);

// --- For WidenFp8 and its test ---

// Whether this CPU looks bytes up 128 at a time (AVX512_VBMI).
bool HasByteLookup();

// The same in bf16 for CPUs that do: one table of 128 results for all numbers.
void WidenFp8ToBf16ByLookup(const std::byte* numbers, int64_t count, float scale, std::byte* wide);

}  // namespace zp::ops::cpu
