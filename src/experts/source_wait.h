// Sleeping until a source has something.
//
// Thread safety: the thread that owns the sources.
#pragma once

#include <chrono>
#include <vector>

#include "experts/expert_source.h"

namespace zp::experts {

// Returns when a source has something for Poll, when `wake_fd` (-1: none) becomes readable, or at
// `deadline`.
void AwaitSources(const std::vector<ExpertSource>& sources,
                  int wake_fd,
                  std::chrono::steady_clock::time_point deadline);

}  // namespace zp::experts
