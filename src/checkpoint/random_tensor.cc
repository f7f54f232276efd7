#include "checkpoint/random_tensor.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/bfloat16.h"
#include "base/check.h"
#include "base/float8.h"

namespace zp::checkpoint {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

// The finaliser of SplitMix64: a bijection in which every input bit moves every output bit.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// FNV-1a.
uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash;
}

// Round to nearest even; results below the normal range become zero, which no weight misses.
uint16_t HalfBits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const int32_t exponent = static_cast<int32_t>((bits >> 23) & 0xffu) - 127 + 15;
  if (exponent <= 0) {
    return sign;
  }
  const uint32_t rounded =
      (uint32_t(exponent) << 23 | (bits & 0x7fffffu)) + 0xfffu + ((bits >> 13) & 1u);
  return sign | (rounded >> 13);
}

uint32_t BitsOf(float value, spec::DType dtype) {
  switch (dtype) {
    case spec::DType::kBf16:
      return base::BFloat16(value).bits;
    case spec::DType::kF16:
      return HalfBits(value);
    case spec::DType::kF32:
      return std::bit_cast<uint32_t>(value);
  }
  return 0;
}

}  // namespace

template <typename ToBits>
RandomTensor::RandomTensor(uint64_t seed,
                           std::string_view name,
                           size_t element_bytes,
                           ToBits bits_of_normal)
    : key_(Mix(HashName(name) ^ Mix(seed + kGolden))), element_bytes_(element_bytes) {
  constexpr float kSumMean = 4 * 127.5f;
  const float sum_deviation = std::sqrt(4 * (256.0f * 256.0f - 1) / 12);
  for (int sum = 0; sum < kSumCount; ++sum) {
    const float normal = (static_cast<float>(sum) - kSumMean) / sum_deviation;
    bits_by_sum_[sum] = bits_of_normal(normal);
  }
}

RandomTensor::RandomTensor(
    uint64_t seed, std::string_view name, spec::DType dtype, float mean, float deviation)
    : RandomTensor(seed, name, spec::SizeOf(dtype), [=](float normal) {
        return BitsOf(mean + deviation * normal, dtype);
      }) {}

RandomTensor RandomTensor::OfFp8(uint64_t seed, std::string_view name, float deviation) {
  return RandomTensor(seed, name, sizeof(uint8_t), [=](float normal) {
    return uint32_t{base::FloatToFp8(deviation * normal)};
  });
}

void RandomTensor::Fill(int64_t first_element, std::span<std::byte> bytes) const {
  ZP_CHECK(first_element % 2 == 0 && bytes.size() % element_bytes_ == 0) << first_element;
  if (element_bytes_ == sizeof(uint8_t)) {
    FillBits<uint8_t>(first_element, bytes);
  } else if (element_bytes_ == sizeof(uint16_t)) {
    FillBits<uint16_t>(first_element, bytes);
  } else {
    FillBits<uint32_t>(first_element, bytes);
  }
}

// One 64-bit draw makes two elements.
template <typename Bits>
void RandomTensor::FillBits(int64_t first_element, std::span<std::byte> bytes) const {
  constexpr uint64_t kEvenBytes = 0x00ff00ff00ff00ff;
  const size_t element_count = bytes.size() / sizeof(Bits);
  std::array<Bits, kSumCount> table;
  for (int sum = 0; sum < kSumCount; ++sum) {
    table[sum] = static_cast<Bits>(bits_by_sum_[sum]);
  }
  uint64_t counter = key_ + kGolden * (static_cast<uint64_t>(first_element) / 2);
  for (size_t i = 0; i < element_count; i += 2, counter += kGolden) {
    const uint64_t random = Mix(counter);
    const uint64_t pair_sums = (random & kEvenBytes) + ((random >> 8) & kEvenBytes);
    const uint64_t sums = pair_sums + (pair_sums >> 16);
    const Bits pair[2] = {table[sums & 0xffffu], table[(sums >> 32) & 0xffffu]};
    std::memcpy(
        bytes.data() + i * sizeof(Bits), pair, i + 1 < element_count ? sizeof(pair) : sizeof(Bits));
  }
}

}  // namespace zp::checkpoint
