#include "base/checksum.h"

#include <random>

#include "xxhash.h"

namespace zp::base {

uint64_t Checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

Hash128 KeyedHash(uint64_t key, std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), key);
  return {.high = hash.high64, .low = hash.low64};
}

uint64_t RandomKey() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

}  // namespace zp::base
