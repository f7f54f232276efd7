// The operations on a CPU: oneDNN for the matrix products, own SIMD code for what it lacks.
#pragma once

#include <memory>

#include "base/status.h"
#include "base/thread_pool.h"
#include "ops/kernels.h"

namespace zp::ops::cpu {

// activation_dtype, of weights as well: kBf16, or kF32 (for comparison; twice the memory). `pool`
// must outlive the kernels. Fails with InvalidArgument on kF16.
//
// bf16 is multiplied as bf16 where the CPU has instructions for it (AVX512_BF16, AMX), else widened
// on its way into f32 products; name() says which.
absl::StatusOr<std::unique_ptr<Kernels>> CreateKernels(spec::DType activation_dtype,
                                                       base::ThreadPool& pool);
// The same with f32 products on every CPU, so that each can test what others do.
absl::StatusOr<std::unique_ptr<Kernels>> CreateKernelsWithF32Products(spec::DType activation_dtype,
                                                                      base::ThreadPool& pool);

// bf16 (or f32) multiply-add peak of the pool's threads in FLOP/s, measured now: independent
// accumulators in registers only. The denominator of every utilisation we print. Takes about
// `seconds`.
double MeasurePeakFlops(spec::DType dtype, base::ThreadPool& pool, double seconds = 0.2);

// The mean over `seconds` instead of the best moment: what is left under a CPU quota, which lets a
// burst pass at full speed.
double MeasureMeanFlops(spec::DType dtype, base::ThreadPool& pool, double seconds);

}  // namespace zp::ops::cpu
