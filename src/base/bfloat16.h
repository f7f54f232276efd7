// bfloat16: the upper half of an IEEE float. Conversion rounds to nearest even, as the CPU's
// vcvtneps2bf16 does.
#pragma once

#include <bit>
#include <cstdint>

namespace zp::base {

struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float value) : bits(Round(value)) {}
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }

 private:
  static uint16_t Round(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      return static_cast<uint16_t>((word >> 16) | 0x40u);  // a NaN stays a (quiet) NaN
    }
    return static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
};

static_assert(sizeof(BFloat16) == 2);

}  // namespace zp::base
