// The denominator of every utilisation: what the multiply-add units of these threads can do when
// nothing else stands in their way.

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "ops/cpu/cpu_kernels.h"

namespace zp::ops::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// Latency (4 to 6 cycles) times units (2) needs at most 12 in flight.
constexpr int kAccumulators = 24;
constexpr int kAvx2Accumulators = 12;    // of 16 registers
constexpr int64_t kIterations = 40'000;  // about a quarter of a millisecond

// Each probe returns the multiply-adds' FLOPs. The empty asm statements let the compiler believe
// that accumulators and factors differ, so that it drops none of the work and keeps all in
// registers.
__attribute__((target("avx512f,avx512bf16"), noinline)) double RunBf16() {
  __m512 sums[kAccumulators];
#pragma GCC unroll 24
  for (auto& sum : sums) {
    sum = _mm512_setzero_ps();
    asm volatile("" : "+v"(sum));
  }
  __m512i bits = _mm512_set1_epi16(0x3f80);
  for (int64_t i = 0; i < kIterations; ++i) {
    asm volatile("" : "+v"(bits));
#pragma GCC unroll 24
    for (auto& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, (__m512bh)bits, (__m512bh)bits);
    }
  }
#pragma GCC unroll 24
  for (auto& sum : sums) {
    asm volatile("" : : "v"(sum));
  }
  return 64.0 * kAccumulators * kIterations;
}

__attribute__((target("avx512f"), noinline)) double RunAvx512() {
  __m512 sums[kAccumulators];
#pragma GCC unroll 24
  for (auto& sum : sums) {
    sum = _mm512_setzero_ps();
    asm volatile("" : "+v"(sum));
  }
  __m512 factor = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < kIterations; ++i) {
    asm volatile("" : "+v"(factor));
#pragma GCC unroll 24
    for (auto& sum : sums) {
      sum = _mm512_fmadd_ps(sum, factor, factor);
    }
  }
#pragma GCC unroll 24
  for (auto& sum : sums) {
    asm volatile("" : : "v"(sum));
  }
  return 32.0 * kAccumulators * kIterations;
}

__attribute__((target("avx2,fma"), noinline)) double RunAvx2() {
  __m256 sums[kAvx2Accumulators];
#pragma GCC unroll 12
  for (auto& sum : sums) {
    sum = _mm256_setzero_ps();
    asm volatile("" : "+x"(sum));
  }
  __m256 factor = _mm256_set1_ps(0.5f);
  for (int64_t i = 0; i < kIterations; ++i) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm256_fmadd_ps(sum, factor, factor);
    }
  }
#pragma GCC unroll 12
  for (auto& sum : sums) {
    asm volatile("" : : "x"(sum));
  }
  return 16.0 * kAvx2Accumulators * kIterations;
}

double RunSse() {
  __m128 sums[kAvx2Accumulators];
#pragma GCC unroll 12
  for (auto& sum : sums) {
    sum = _mm_setzero_ps();
    asm volatile("" : "+x"(sum));
  }
  __m128 factor = _mm_set1_ps(0.5f);
  for (int64_t i = 0; i < kIterations; ++i) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm_add_ps(_mm_mul_ps(sum, factor), factor);
    }
  }
#pragma GCC unroll 12
  for (auto& sum : sums) {
    asm volatile("" : : "x"(sum));
  }
  return 8.0 * kAvx2Accumulators * kIterations;
}

// What `ldtilecfg` reads: every tile has 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  TileConfig() {
    row_bytes.fill(64);
    rows.fill(16);
  }

  uint8_t palette = 1;
  uint8_t start_row = 0;
  std::array<uint8_t, 14> reserved = {};
  std::array<uint16_t, 8> row_bytes = {};
  std::array<uint16_t, 8> unused_row_bytes = {};
  std::array<uint8_t, 8> rows = {};
  std::array<uint8_t, 8> unused_rows = {};
};
static_assert(sizeof(TileConfig) == 64);

// The system gives tiles to a process that asks for them; the products use them unless oneDNN is
// held to less (ONEDNN_MAX_CPU_ISA).
bool MayUseAmx() {
  if (dnnl::get_effective_cpu_isa() != dnnl::cpu_isa::avx512_core_amx) {
    return false;
  }
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  constexpr unsigned kAmxBf16 = 1u << 22;     // in EDX of leaf 7
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmxBf16) != 0 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Tiles 0 to 5 are sums: a product of tiles takes 52 cycles, and another may begin every 16.
__attribute__((target("amx-tile,amx-bf16"), noinline)) double RunAmxBf16() {
  constexpr int64_t kTileFlops = 2 * 16 * 16 * 32;
  constexpr int64_t kTileIterations = kIterations / 10;
  const TileConfig config;
  asm volatile("" : : "r"(&config) : "memory");  // GCC sees only the first bytes being read
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < kTileIterations; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
  return static_cast<double>(6 * kTileFlops * kTileIterations);
}

using Probe = double (*)();

// Without AVX512_BF16 or AMX the bf16 peak is the f32 peak: bf16 rows are then multiplied as f32.
Probe ProbeFor(spec::DType dtype) {
  if (dtype == spec::DType::kBf16 && MayUseAmx()) {
    return RunAmxBf16;
  }
  if (dtype == spec::DType::kBf16 && __builtin_cpu_supports("avx512bf16")) {
    return RunBf16;
  }
  if (__builtin_cpu_supports("avx512f")) {
    return RunAvx512;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? RunAvx2 : RunSse;
}

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// FLOPs of one slice, all threads at once.
double RunSlice(Probe probe, base::ThreadPool& pool) {
  std::vector<double> flops(pool.thread_count());
  pool.ParallelFor(int64_t{4} * pool.thread_count(),
                   [&](int64_t, int worker) { flops[worker] += probe(); });
  return std::accumulate(flops.begin(), flops.end(), 0.0);
}

}  // namespace

// The best of many slices in which all threads run at once: whatever else the machine does can only
// make a slice slower than the peak.
double MeasurePeakFlops(spec::DType dtype, base::ThreadPool& pool, double seconds) {
  const Probe probe = ProbeFor(dtype);
  const Clock::time_point start = Clock::now();
  double best = 0;
  do {
    const Clock::time_point slice_start = Clock::now();
    const double flops = RunSlice(probe, pool);
    best = std::max(best, flops / SecondsSince(slice_start));
  } while (SecondsSince(start) < seconds);
  return best;
}

double MeasureMeanFlops(spec::DType dtype, base::ThreadPool& pool, double seconds) {
  const Probe probe = ProbeFor(dtype);
  const Clock::time_point start = Clock::now();
  double flops = 0;
  do {
    flops += RunSlice(probe, pool);
  } while (SecondsSince(start) < seconds);
  return flops / SecondsSince(start);
}

}  // namespace zp::ops::cpu
