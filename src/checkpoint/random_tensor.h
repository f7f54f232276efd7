// The numbers of a synthetic tensor: approximately normal, each a function of (seed, name, place).
//
// Thread safety: immutable after construction; Fill may be called from many threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "spec/dtype.h"

namespace zp::checkpoint {

class RandomTensor {
 public:
  RandomTensor(
      uint64_t seed, std::string_view name, spec::DType dtype, float mean, float deviation);
  // Of 8-bit numbers (base/float8.h), around 0.
  static RandomTensor OfFp8(uint64_t seed, std::string_view name, float deviation);

  // Writes the elements from `first_element` on, as many as `bytes` holds.
  // REQUIRES: first_element is even; `bytes` is a whole number of elements.
  void Fill(int64_t first_element, std::span<std::byte> bytes) const;

 private:
  // An element is the sum of four random bytes, a whole number with nearly normal distribution; the
  // table says what number of `dtype` that is.
  static constexpr int kSumCount = 4 * 255 + 1;

  template <typename ToBits>
  RandomTensor(uint64_t seed, std::string_view name, size_t element_bytes, ToBits bits_of_normal);

  template <typename Bits>
  void FillBits(int64_t first_element, std::span<std::byte> bytes) const;

  const uint64_t key_;
  const size_t element_bytes_;
  std::array<uint32_t, kSumCount> bits_by_sum_;
};

}  // namespace zp::checkpoint
