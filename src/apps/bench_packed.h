// Packed directories of random weights for benchmarks.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"

namespace zp::apps {

// A packed directory of the named shape cut to `layer_count` layers, below `work_directory` (empty:
// /var/tmp): made at the first call, kept for the next. One for each layout of the kernels.
absl::StatusOr<std::string> PackedBenchDirectory(const std::string& shape,
                                                 int32_t layer_count,
                                                 const std::string& work_directory,
                                                 base::ThreadPool& pool);

}  // namespace zp::apps
