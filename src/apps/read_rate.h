// How fast a source delivers, and at what cost to the processor.
//
// Thread safety: the thread that owns the source.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fabric/byte_source.h"

namespace zp::apps {

inline constexpr size_t kReadRateSliceBytes = size_t{2} << 20;

struct ReadReport {
  uint64_t bytes = 0;  // within `seconds`, which begin after the first slices have come
  double seconds = 0;
  double cpu_s = 0;
  uint64_t all_bytes = 0;
  int error = 0;  // errno of the read that failed; the rest then tells nothing
};

// Reads object 0, `object_bytes` of it round and round, as many slices at a time as the source
// takes, sleeping whenever it can. REQUIRES: object_bytes is a multiple of a slice, not 0.
ReadReport ReadFor(fabric::ByteSource& source, uint64_t object_bytes, double seconds);

// User and system time of this process so far.
double CpuSeconds();

}  // namespace zp::apps
