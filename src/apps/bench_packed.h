// Packed directories of random weights for benchmarks.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::apps {

// A packed directory of random weights of `spec`, below `work_directory` (empty: /var/tmp) and with
// `name` in its own: made at the first call, kept for the next. One for each layout of the kernels.
// `dtype`: of the activations that it is packed for. With `fp8_blocks` its experts are 8-bit
// numbers.
absl::StatusOr<std::string> PackedBenchDirectory(const std::string& name,
                                                 const spec::ModelSpec& spec,
                                                 const std::string& work_directory,
                                                 base::ThreadPool& pool,
                                                 std::optional<spec::Fp8Blocks> fp8_blocks = {},
                                                 spec::DType dtype = spec::DType::kBf16);

}  // namespace zp::apps
