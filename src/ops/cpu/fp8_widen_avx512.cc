// A number of 8 bits has 128 magnitudes, and times one scale each of them is one bf16: two tables
// of 128 bytes, low and high halves, in two registers each.
#include <immintrin.h>

#include <array>
#include <cstring>

#include "base/float8.h"
#include "ops/cpu/fp8_widen.h"

// GCC 12 takes the undefined operands within its own AVX-512 intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vbmi,prefer-vector-width=512")

namespace zp::ops::cpu {
namespace {

constexpr int kMagnitudes = 128;
constexpr int kVectorFloats = 16;
constexpr int64_t kVectorBytes = 64;

// Results for the magnitudes 0 to 63 and 64 to 127: one byte of each.
struct ByteTable {
  __m512i first;
  __m512i second;
};

struct ResultTables {
  ByteTable low;
  ByteTable high;
};

inline ByteTable Load(const std::array<uint8_t, kMagnitudes>& bytes) {
  return {_mm512_loadu_si512(bytes.data()), _mm512_loadu_si512(bytes.data() + kVectorBytes)};
}

inline ResultTables MakeTables(float scale) {
  alignas(64) std::array<uint8_t, kMagnitudes> low;
  alignas(64) std::array<uint8_t, kMagnitudes> high;
  const __m512i half = _mm512_set1_epi32(0x7fff);
  const __m512i one = _mm512_set1_epi32(1);
  for (int begin = 0; begin < kMagnitudes; begin += kVectorFloats) {
    const __m512 magnitudes = _mm512_loadu_ps(base::kFp8Values.data() + begin);
    const __m512i word = _mm512_castps_si512(_mm512_mul_ps(magnitudes, _mm512_set1_ps(scale)));
    // To nearest even by integers: vcvtneps2bf16 would make a denormal zero.
    const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), one);
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(word, half), is_odd);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low.data() + begin),
                     _mm512_cvtepi32_epi8(_mm512_srli_epi32(rounded, 16)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high.data() + begin),
                     _mm512_cvtepi32_epi8(_mm512_srli_epi32(rounded, 24)));
  }
  return {Load(low), Load(high)};
}

// 64 numbers. `wide` is 128 bytes.
inline void WidenVector(__m512i numbers, const ResultTables& tables, std::byte* wide) {
  // Interleaving works within lanes of 16 bytes: the first half of the numbers to the low halves of
  // the lanes, the second half to the high ones.
  const __m512i lanes =
      _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), numbers);
  const __m512i low = _mm512_permutex2var_epi8(tables.low.first, lanes, tables.low.second);
  const __m512i magnitude = _mm512_permutex2var_epi8(tables.high.first, lanes, tables.high.second);
  constexpr int kXorOfAnd = 0x78;  // a ^ (b & c)
  const __m512i high =
      _mm512_ternarylogic_epi64(magnitude, lanes, _mm512_set1_epi8(-128), kXorOfAnd);
  _mm512_storeu_si512(wide, _mm512_unpacklo_epi8(low, high));
  _mm512_storeu_si512(wide + kVectorBytes, _mm512_unpackhi_epi8(low, high));
}

}  // namespace

void WidenFp8ToBf16ByLookup(const std::byte* numbers, int64_t count, float scale, std::byte* wide) {
  const ResultTables tables = MakeTables(scale);
  const int64_t whole = count / kVectorBytes * kVectorBytes;
  for (int64_t i = 0; i < whole; i += kVectorBytes) {
    WidenVector(_mm512_loadu_si512(numbers + i), tables, wide + 2 * i);
  }
  if (const int64_t left = count - whole; left > 0) {
    alignas(64) std::array<std::byte, 2 * kVectorBytes> last;
    const __mmask64 mask = (uint64_t{1} << left) - 1;
    WidenVector(_mm512_maskz_loadu_epi8(mask, numbers + whole), tables, last.data());
    std::memcpy(wide + 2 * whole, last.data(), 2 * left);
  }
}

}  // namespace zp::ops::cpu

#pragma GCC pop_options
