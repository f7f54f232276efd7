// A fast checksum of bytes at rest or after a move (XXH3, 64 bits; not cryptographic).
//
// Thread safety: any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace zp::base {

uint64_t Checksum(std::span<const std::byte> bytes);

// For tables that many strangers write into: who does not know `key` cannot aim for a collision
// cheaply. Not a signature.
struct Hash128 {
  uint64_t high = 0;
  uint64_t low = 0;

  bool operator==(const Hash128&) const = default;
  template <typename State>
  friend State AbslHashValue(State state, const Hash128& hash) {
    return State::combine(std::move(state), hash.high, hash.low);
  }
};
Hash128 KeyedHash(uint64_t key, std::span<const std::byte> bytes);
// A key that nobody else knows.
uint64_t RandomKey();

}  // namespace zp::base
