// The denominator of every utilisation: what the multiply-add units of these threads can do when
// nothing else stands in their way.

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

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

using Probe = double (*)();

// Without AVX512_BF16 the bf16 peak is the f32 peak: bf16 rows are then multiplied as f32.
Probe ProbeFor(spec::DType dtype) {
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

}  // namespace

// The best of many slices in which all threads run at once: whatever else the machine does can only
// make a slice slower than the peak.
double MeasurePeakFlops(spec::DType dtype, base::ThreadPool& pool, double seconds) {
  const Probe probe = ProbeFor(dtype);
  const Clock::time_point start = Clock::now();
  double best = 0;
  do {
    std::vector<double> flops(pool.thread_count());
    const Clock::time_point slice_start = Clock::now();
    pool.ParallelFor(int64_t{4} * pool.thread_count(),
                     [&](int64_t index, int worker) { flops[worker] += probe(); });
    double total = 0;
    for (const double part : flops) {
      total += part;
    }
    best = std::max(best, total / SecondsSince(slice_start));
  } while (SecondsSince(start) < seconds);
  return best;
}

}  // namespace zp::ops::cpu
