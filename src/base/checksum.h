// A fast checksum of bytes at rest or after a move (XXH3, 64 bits; not cryptographic).
//
// Thread safety: any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace zp::base {

uint64_t Checksum(std::span<const std::byte> bytes);

}  // namespace zp::base
