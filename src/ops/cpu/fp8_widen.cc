#include "ops/cpu/fp8_widen.h"

#include <cstring>

#include "base/bfloat16.h"
#include "base/float8.h"

namespace zp::ops::cpu {
namespace {

// Below this the table costs more than it saves.
constexpr int64_t kMinLookupCount = 128;

template <typename Wide>
void WidenEach(const std::byte* numbers, int64_t count, float scale, std::byte* wide) {
  for (int64_t i = 0; i < count; ++i) {
    const Wide value(base::kFp8Values[static_cast<uint8_t>(numbers[i])] * scale);
    std::memcpy(wide + i * sizeof(Wide), &value, sizeof(Wide));
  }
}

}  // namespace

bool HasByteLookup() {
  static const bool has_it =
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw");
  return has_it;
}

void WidenFp8(
    const std::byte* numbers, int64_t count, float scale, spec::DType dtype, std::byte* wide) {
  if (dtype == spec::DType::kF32) {
    WidenEach<float>(numbers, count, scale, wide);
  } else if (count >= kMinLookupCount && HasByteLookup()) {
    WidenFp8ToBf16ByLookup(numbers, count, scale, wide);
  } else {
    WidenEach<base::BFloat16>(numbers, count, scale, wide);
  }
}

}  // namespace zp::ops::cpu
