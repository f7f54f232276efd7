// bf16 attention with AVX512_BF16. Layout of one head in a block: K [head_dim / 2][16 keys][2],
// then V [8 key pairs][head_dim rounded up to 16][2], so that vdpbf16ps takes two dims (of K) or
// two keys (of V) of 16 columns at a time.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "ops/cpu/attention_tile.h"

// GCC 12 takes the undefined operands within its own AVX-512 intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")

namespace zp::ops::cpu {
namespace {

constexpr int kMaxVectors = 3;  // of 16 columns, beside each other in a micro kernel
constexpr int kQueryRowWords = kMaxHeadDim / 2;  // pairs of a query row
constexpr int kTileWeightWords = kTileKeys / 2;  // pairs of bf16 weights of one row
constexpr int kBlockPairs = kKvBlockTokens / 2;

int VectorCount(int head_dim) { return (head_dim + kVectorDims - 1) / kVectorDims; }
size_t KeyBytes(int head_dim) { return size_t{kKvBlockTokens} * head_dim * sizeof(uint16_t); }

// How many vectors the next micro kernel takes of those left: 4 are better cut 2 + 2 than 3 + 1,
// since fewer than 12 accumulators cannot fill the pipes.
int NextVectors(int left) { return left == 4 ? 2 : std::min(left, kMaxVectors); }

// 2^x for x <= 0 within 3e-6 of it, relative (weights are rounded to 4e-3); exactly 1 at 0; 2^-126
// below -126; NaN at NaN. The polynomial is the best of degree 4 on [-0.5, 0.5] with p(0) = 1.
inline __m512 Exp2(__m512 x) {
  // Adding 1.5 * 2^23 rounds x to an integer and leaves it in the low bits.
  const __m512 shift = _mm512_set1_ps(12582912.0f);
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // gives x if x is NaN
  const __m512 shifted = _mm512_add_ps(x, shift);
  const __m512 fraction = _mm512_sub_ps(x, _mm512_sub_ps(shifted, shift));
  __m512 power = _mm512_set1_ps(9.58285294e-3f);
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(5.59064262e-2f));
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(2.40240991e-1f));
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(6.93124175e-1f));
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(1.0f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(power), exponent));
}

// scores [kRows][kTileKeys], kVectors blocks of columns = q . k
template <int kRows, int kVectors>
void Scores(const uint32_t* query, const std::byte* const* heads, int pair_count, float* scores) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      sums[row][v] = _mm512_setzero_ps();
    }
  }
  for (int pair = 0; pair < pair_count; ++pair) {
    __m512bh keys[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      keys[v] = (__m512bh)_mm512_load_si512(heads[v] + pair * 64);
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const auto q =
          (__m512bh)_mm512_set1_epi32(static_cast<int>(query[row * kQueryRowWords + pair]));
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = _mm512_dpbf16_ps(sums[row][v], q, keys[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      _mm512_store_ps(scores + row * kTileKeys + v * 16, sums[row][v]);
    }
  }
}

// values [kVectors][kGroupRows][16] = values * decay[row] + weights . V, where the old values count
// only if `keep` is all ones.
template <int kRows, int kVectors>
void AddValues(const uint32_t* weights,
               const std::byte* const* heads,
               int block_count,
               size_t value_offset,
               int row_bytes,
               const float* decay,
               __mmask16 keep,
               float* values) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      sums[row][v] = _mm512_mul_ps(_mm512_maskz_load_ps(keep, values + (v * kGroupRows + row) * 16),
                                   _mm512_set1_ps(decay[row]));
    }
  }
  for (int block = 0; block < block_count; ++block) {
    const std::byte* source = heads[block] + value_offset;
    for (int pair = 0; pair < kBlockPairs; ++pair) {
      __m512bh columns[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = (__m512bh)_mm512_load_si512(source + v * 64);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const auto weight =
            (__m512bh)_mm512_set1_epi32(static_cast<int>(weights[row * kTileWeightWords]));
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) {
          sums[row][v] = _mm512_dpbf16_ps(sums[row][v], weight, columns[v]);
        }
      }
      source += row_bytes;
      ++weights;
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      _mm512_store_ps(values + (v * kGroupRows + row) * 16, sums[row][v]);
    }
  }
}

using ScoresFunction = decltype(&Scores<1, 1>);
using AddValuesFunction = decltype(&AddValues<1, 1>);

// Micro kernels by [rows - 1][vectors - 1].
template <typename Function>
using KernelTable = std::array<std::array<Function, kMaxVectors>, kGroupRows>;

template <int... kRow>
constexpr KernelTable<ScoresFunction> ScoresTable(std::integer_sequence<int, kRow...>) {
  return {{{&Scores<kRow + 1, 1>, &Scores<kRow + 1, 2>, &Scores<kRow + 1, 3>}...}};
}
template <int... kRow>
constexpr KernelTable<AddValuesFunction> AddValuesTable(std::integer_sequence<int, kRow...>) {
  return {{{&AddValues<kRow + 1, 1>, &AddValues<kRow + 1, 2>, &AddValues<kRow + 1, 3>}...}};
}
constexpr auto kScores = ScoresTable(std::make_integer_sequence<int, kGroupRows>());
constexpr auto kAddValues = AddValuesTable(std::make_integer_sequence<int, kGroupRows>());

__mmask16 FirstLanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

float MaxOf(const float* scores, int visible) {
  const int full = visible / 16;
  __m512 max = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int v = 0; v < full; ++v) {
    max = _mm512_max_ps(max, _mm512_load_ps(scores + v * 16));
  }
  const __mmask16 rest = FirstLanes(visible % 16);
  max = _mm512_mask_max_ps(max, rest, max, _mm512_maskz_load_ps(rest, scores + full * 16));
  return _mm512_reduce_max_ps(max);
}

// weights [block_count * 16] = 2^(scores * scale - offset), 0 where not visible; returns their sum.
float Weigh(const float* scores,
            int visible,
            int block_count,
            float scale,
            float offset,
            uint16_t* weights) {
  const __m512 scales = _mm512_set1_ps(scale);
  const __m512 offsets = _mm512_set1_ps(offset);
  const auto weigh = [&](int v, __mmask16 seen) {
    const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(scores + v * 16), scales, offsets);
    const __m512 weight = _mm512_maskz_mov_ps(seen, Exp2(x));
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights + v * 16),
                       (__m256i)_mm512_cvtneps_pbh(weight));
    return weight;
  };
  __m512 sum = _mm512_setzero_ps();
  int v = 0;
  for (; v < visible / 16; ++v) {
    sum = _mm512_add_ps(sum, weigh(v, 0xffff));
  }
  for (; v < block_count; ++v) {
    sum = _mm512_add_ps(sum, weigh(v, FirstLanes(std::max(visible - v * 16, 0))));
  }
  return _mm512_reduce_add_ps(sum);
}

// Rows and columns of 16 x 16 words change places.
inline void Transpose(__m512i (&rows)[16]) {
  __m512i pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // quads[4 * j + c]: in lane l, column 4 * l + c of rows 4 * j .. 4 * j + 3.
  __m512i quads[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i even_low = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    rows[4 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    rows[8 + c] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    rows[12 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}

constexpr uint16_t kInfinityBits = 0x7f80;
constexpr uint32_t kNaNPair = 0x7fc07fc0;

bool HasNonFinite(__m512i largest) {
  return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(kInfinityBits)) != 0;
}
__m512i MaxMagnitude(__m512i largest, __m512i elements) {
  return _mm512_max_epu16(largest, _mm512_and_si512(elements, _mm512_set1_epi16(0x7fff)));
}

// Writes the K of a run; returns the largest magnitudes, by column.
__m512i WriteRunKeys(const KvRun& run, size_t column_bytes, int head_dim, std::byte* head) {
  const auto slots = static_cast<__mmask16>(((1u << run.count) - 1) << run.slot_begin);
  __m512i largest = _mm512_setzero_si512();
  for (int pair = 0; pair < head_dim / 2; pair += 16) {
    const int count = std::min(head_dim / 2 - pair, 16);
    __m512i rows[16] = {};
    for (int i = 0; i < run.count; ++i) {
      rows[run.slot_begin + i] =
          _mm512_maskz_loadu_epi32(FirstLanes(count), run.k[i] + column_bytes + pair * 4);
      largest = MaxMagnitude(largest, rows[run.slot_begin + i]);
    }
    Transpose(rows);
    for (int i = 0; i < count; ++i) {
      _mm512_mask_store_epi32(head + (pair + i) * 64, slots, rows[i]);
    }
  }
  return largest;
}

// The same for V.
__m512i WriteRunValues(const KvRun& run, size_t column_bytes, int head_dim, std::byte* head) {
  __m512i largest = _mm512_setzero_si512();
  const int row_bytes = VectorCount(head_dim) * 64;
  for (int i = 0; i < run.count;) {
    const int slot = run.slot_begin + i;
    const bool has_even = slot % 2 == 0;
    const bool has_odd = !has_even || i + 1 < run.count;
    const std::byte* even = run.v[i] + column_bytes;
    const std::byte* odd = run.v[has_even && has_odd ? i + 1 : i] + column_bytes;
    const __mmask32 written = (has_even ? 0x55555555u : 0u) | (has_odd ? 0xaaaaaaaau : 0u);
    std::byte* target = head + KeyBytes(head_dim) + slot / 2 * row_bytes;
    for (int column = 0; column < head_dim; column += kVectorDims) {
      const __mmask16 columns = FirstLanes(std::min(head_dim - column, kVectorDims));
      const __m512i low =
          _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, even + column * 2));
      const __m512i high =
          _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, odd + column * 2));
      const __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
      largest = MaxMagnitude(largest, both);
      _mm512_mask_storeu_epi16(target + column * 4, written, both);
    }
    i += has_even && has_odd ? 2 : 1;
  }
  return largest;
}

// Positions with a K or V that is not finite get a K of NaN and a V of 0: scores are masked by
// choice, but a weight of 0 times a V of NaN would reach rows that do not see it.
void ReplaceNonFinite(const KvRun& run, size_t column_bytes, int head_dim, std::byte* head) {
  const auto is_finite = [&](const std::byte* row) {
    const auto* elements = reinterpret_cast<const uint16_t*>(row + column_bytes);
    return std::all_of(elements, elements + head_dim, [](uint16_t bits) {
      return (bits & kInfinityBits) != kInfinityBits;
    });
  };
  for (int i = 0; i < run.count; ++i) {
    if (is_finite(run.k[i]) && is_finite(run.v[i])) {
      continue;
    }
    const int slot = run.slot_begin + i;
    auto* keys = reinterpret_cast<uint32_t*>(head) + slot;
    for (int pair = 0; pair < head_dim / 2; ++pair) {
      keys[pair * kKvBlockTokens] = kNaNPair;
    }
    auto* values = reinterpret_cast<uint16_t*>(head + KeyBytes(head_dim)) +
                   slot / 2 * VectorCount(head_dim) * 32 + slot % 2;
    for (int column = 0; column < head_dim; ++column) {
      values[column * 2] = 0;
    }
  }
}

class Bf16Kernel final : public TileKernel {
 public:
  size_t head_bytes(int head_dim) const override {
    return KeyBytes(head_dim) + size_t{kBlockPairs} * VectorCount(head_dim) * 64;
  }

  void WriteRun(const KvRun& run,
                size_t column_bytes,
                int head_dim,
                std::byte* head) const override {
    const __m512i largest = _mm512_max_epu16(WriteRunKeys(run, column_bytes, head_dim, head),
                                             WriteRunValues(run, column_bytes, head_dim, head));
    if (HasNonFinite(largest)) {
      ReplaceNonFinite(run, column_bytes, head_dim, head);
    }
  }

  void Begin(const std::byte* const* q, int head_dim, RowGroup& group) const override {
    for (int row = 0; row < group.row_count; ++row) {
      std::byte* target = group.query + row * kQueryRowWords * sizeof(uint32_t);
      for (int pair = 0; pair < head_dim / 2; pair += 16) {
        const __mmask16 pairs = FirstLanes(std::min(head_dim / 2 - pair, 16));
        _mm512_store_si512(target + pair * 4, _mm512_maskz_loadu_epi32(pairs, q[row] + pair * 4));
      }
    }
  }

  void AddTile(const KeyTile& tile, int head_dim, float scale, RowGroup& group) const override {
    alignas(64) float scores[kGroupRows][kTileKeys];
    alignas(64) uint16_t weights[kGroupRows][kTileKeys];
    alignas(64) float decay[16] = {};
    int visible = 0;
    for (int row = 0; row < group.row_count; ++row) {
      visible = std::max(visible, group.visible[row]);
    }
    const int block_count = (visible + kKvBlockTokens - 1) / kKvBlockTokens;

    const auto* query = reinterpret_cast<const uint32_t*>(group.query);
    for (int block = 0, count = 0; block < block_count; block += count) {
      count = NextVectors(block_count - block);
      kScores[group.row_count - 1][count - 1](
          query, tile.heads + block, head_dim / 2, &scores[0][block * 16]);
    }
    for (int row = 0; row < group.row_count; ++row) {
      const float new_max = group.visible[row] > 0
                                ? std::max(MaxOf(scores[row], group.visible[row]), group.max[row])
                                : group.max[row];
      decay[row] = group.max[row] * scale - new_max * scale;
      group.max[row] = new_max;
    }
    _mm512_store_ps(decay, Exp2(_mm512_load_ps(decay)));
    for (int row = 0; row < group.row_count; ++row) {
      const float sum = Weigh(scores[row],
                              group.visible[row],
                              block_count,
                              scale,
                              group.max[row] * scale,
                              weights[row]);
      group.sum[row] = group.sum[row] * decay[row] + sum;
    }
    const int vector_count = VectorCount(head_dim);
    for (int v = 0, count = 0; v < vector_count; v += count) {
      count = NextVectors(vector_count - v);
      kAddValues[group.row_count - 1][count - 1](reinterpret_cast<const uint32_t*>(weights),
                                                 tile.heads,
                                                 block_count,
                                                 KeyBytes(head_dim) + v * 64,
                                                 vector_count * 64,
                                                 decay,
                                                 group.is_first_tile ? 0 : 0xffff,
                                                 group.values + v * kGroupRows * 16);
    }
  }

  void Finish(const RowGroup& group, int head_dim, std::byte* const* out) const override {
    for (int row = 0; row < group.row_count; ++row) {
      const __m512 factor = _mm512_set1_ps(1.0f / group.sum[row]);
      for (int i = 0; i < head_dim; i += kVectorDims) {
        // + 0: a sum that underflowed to -0 and one that zeros were added to afterwards look alike.
        const __m512 value = _mm512_fmadd_ps(
            _mm512_load_ps(group.values + i * kGroupRows + row * 16), factor, _mm512_setzero_ps());
        _mm256_mask_storeu_epi16(out[row] + i * sizeof(uint16_t),
                                 FirstLanes(std::min(head_dim - i, kVectorDims)),
                                 (__m256i)_mm512_cvtneps_pbh(value));
      }
    }
  }
};

}  // namespace
}  // namespace zp::ops::cpu

#pragma GCC pop_options

namespace zp::ops::cpu {

const TileKernel* FindBf16Kernel() {
  static const Bf16Kernel kernel;
  const bool found = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return found ? &kernel : nullptr;
}

}  // namespace zp::ops::cpu
