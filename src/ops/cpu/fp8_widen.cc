#include "ops/cpu/fp8_widen.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/bfloat16.h"
#include "base/check.h"
#include "base/float8.h"
#include "ops/cpu/row_kernels.h"

namespace zp::ops::cpu {
namespace {

// Below this a table costs more than it saves.
constexpr int64_t kMinLookupCount = 256;
constexpr int kByteValues = 256;

template <typename Rounded>
Rounded WidenOne(uint8_t number, float scale) {
  return Rounded(base::kFp8Values[number] * scale);
}

template <typename Rounded, typename Stored>
void WidenEach(const std::byte* numbers, int64_t count, float scale, Stored* wide) {
  for (int64_t i = 0; i < count; ++i) {
    wide[i] =
        Stored(static_cast<float>(WidenOne<Rounded>(static_cast<uint8_t>(numbers[i]), scale)));
  }
}

template <typename Rounded, typename Stored>
void WidenByTable(const std::byte* numbers, int64_t count, float scale, Stored* wide) {
  std::array<std::byte, kByteValues> every;
  for (int bits = 0; bits < kByteValues; ++bits) {
    every[bits] = static_cast<std::byte>(bits);
  }
  std::array<Stored, kByteValues> table;
  WidenEach<Rounded>(every.data(), kByteValues, scale, table.data());
  for (int64_t i = 0; i < count; ++i) {
    wide[i] = table[static_cast<uint8_t>(numbers[i])];
  }
}

template <typename Rounded, typename Stored>
void WidenAll(const std::byte* numbers, int64_t count, float scale, std::byte* wide) {
  auto* stored = reinterpret_cast<Stored*>(wide);
  if (count >= kMinLookupCount) {
    WidenByTable<Rounded>(numbers, count, scale, stored);
  } else {
    WidenEach<Rounded>(numbers, count, scale, stored);
  }
}

// bf16 results by looking bytes up, then widened while they are in L1.
void WidenToBf16AsF32ByLookup(const std::byte* numbers, int64_t count, float scale, float* wide) {
  constexpr int64_t kPiece = 4096;
  alignas(64) std::array<std::byte, kPiece * sizeof(base::BFloat16)> piece;
  for (int64_t i = 0; i < count; i += kPiece) {
    const int64_t piece_count = std::min(kPiece, count - i);
    WidenFp8ToBf16ByLookup(numbers + i, piece_count, scale, piece.data());
    WidenRow(piece.data(), spec::DType::kBf16, piece_count, wide + i);
  }
}

}  // namespace

bool HasByteLookup() {
  static const bool has_it =
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw");
  return has_it;
}

void WidenFp8(
    const std::byte* numbers, int64_t count, float scale, WideDTypes dtypes, std::byte* wide) {
  const bool looks_up = count >= kMinLookupCount && HasByteLookup();
  if (dtypes.rounded == spec::DType::kF32) {
    ZP_DCHECK(dtypes.stored == spec::DType::kF32);
    WidenAll<float, float>(numbers, count, scale, wide);
  } else if (dtypes.stored == spec::DType::kF32) {
    looks_up ? WidenToBf16AsF32ByLookup(numbers, count, scale, reinterpret_cast<float*>(wide))
             : WidenAll<base::BFloat16, float>(numbers, count, scale, wide);
  } else {
    looks_up ? WidenFp8ToBf16ByLookup(numbers, count, scale, wide)
             : WidenAll<base::BFloat16, base::BFloat16>(numbers, count, scale, wide);
  }
}

void WidenFp8Panel(const WidenPlan& plan,
                   int64_t panel,
                   const std::byte* packed,
                   const float* scales,
                   WideDTypes dtypes,
                   std::byte* wide) {
  packed += plan.first_numbers[panel];
  for (size_t i = plan.first_runs[panel]; i < plan.first_runs[panel + 1]; ++i) {
    const auto [count, scale] = plan.runs[i];
    WidenFp8(packed, count, scale == ScaleRun::kPadding ? 1.0f : scales[scale], dtypes, wide);
    packed += count;
    wide += count * spec::SizeOf(dtypes.stored);
  }
}

}  // namespace zp::ops::cpu
