// 8-bit numbers times one scale, as the numbers of a packed weight.
//
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "spec/dtype.h"

namespace zp::ops::cpu {

// wide[i] = numbers[i] * scale, rounded to f32 and then to `dtype` (bf16 or f32), to the bit; there
// are no NaN among the numbers, and none of the products is infinite.
void WidenFp8(
    const std::byte* numbers, int64_t count, float scale, spec::DType dtype, std::byte* wide);

// --- For WidenFp8 and its test ---

// Whether this CPU looks bytes up 128 at a time (AVX512_VBMI).
bool HasByteLookup();

// The same in bf16 for CPUs that do: one table of 128 results for all numbers.
void WidenFp8ToBf16ByLookup(const std::byte* numbers, int64_t count, float scale, std::byte* wide);

}  // namespace zp::ops::cpu
