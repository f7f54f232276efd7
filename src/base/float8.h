// 8-bit floating-point numbers, F8_E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa; no
// infinities, 0x7f and 0xff are NaN. Every one of them is a bf16 and an f32 as well.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace zp::base {

inline constexpr uint8_t kFp8MagnitudeMask = 0x7f;
inline constexpr uint8_t kFp8Nan = 0x7f;  // of either sign

constexpr float Fp8ToFloat(uint8_t bits) {
  const uint32_t magnitude = bits & kFp8MagnitudeMask;
  if (magnitude == kFp8Nan) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  // Exponent and mantissa at their places in an f32, whose bias is larger by 120; the product also
  // makes denormals normal.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return (bits & 0x80) != 0 ? -value : value;
}

// Fp8ToFloat of all bits.
inline constexpr std::array<float, 256> kFp8Values = [] {
  std::array<float, 256> values = {};
  for (size_t bits = 0; bits < values.size(); ++bits) {
    values[bits] = Fp8ToFloat(static_cast<uint8_t>(bits));
  }
  return values;
}();

// The nearest, ties to even; what is larger than all becomes the largest, 448.
inline uint8_t FloatToFp8(float value) {
  const float magnitude = std::fabs(value);
  const auto numbers_end = kFp8Values.begin() + kFp8Nan;  // rising up to here
  const auto above = std::lower_bound(kFp8Values.begin(), numbers_end, magnitude);
  auto bits = static_cast<uint8_t>(above - kFp8Values.begin());
  if (above == numbers_end) {
    --bits;
  } else if (bits > 0) {
    const float gap_above = *above - magnitude;
    const float gap_below = magnitude - kFp8Values[bits - 1];
    const bool is_odd = bits % 2 != 0;
    bits -= gap_below < gap_above || (gap_below == gap_above && is_odd) ? 1 : 0;
  }
  return std::signbit(value) ? bits | 0x80 : bits;
}

}  // namespace zp::base
