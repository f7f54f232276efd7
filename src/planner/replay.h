// What a replay of a trace is told and what it tells, whether its ranks are real or virtual.
//
// Thread safety: values.
#pragma once

#include <cstdint>
#include <vector>

namespace zp::planner {

// How requests are let in.
struct ReplayPace {
  // Keep so many requests in flight, as clients of a data set do: shows throughput. 0: by arrival.
  int32_t requests_in_flight = 0;
  // What a client needs between an answer and its next request, on average (exponential): answers
  // of a pass come at one moment, and without it their successors would as well.
  double think_s = 0;
  // Seconds of the replay per second of the trace, by arrival: shows latency.
  double time_scale = 1;
};

struct ReplayResult {
  double seconds = 0;  // from the first arrival to the last answer
  // Until the last request was let in, and what was asked and answered by then: without the end of
  // the run, when ranks go idle one after the other. 0: not known.
  double loaded_seconds = 0;
  int64_t loaded_tokens = 0;
  int64_t asked_tokens = 0;
  int64_t computed_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t distinct_tokens = 0;  // of all prompts, whole blocks that are alike counted once
  double computed_flops = 0;
  double distinct_flops = 0;        // of the same
  double least_seconds = 0;         // no policy can be faster; 0: not known
  double busy_seconds = 0;          // of all ranks
  double least_busy_seconds = 0;    // of the rank that had the least to do
  double exposed_wait_seconds = 0;  // of all ranks
  int32_t pass_count = 0;
  std::vector<double> latency_s = {};  // [request]; of those that failed 0

  double tokens_per_s() const { return static_cast<double>(asked_tokens) / seconds; }
  double loaded_tokens_per_s() const {
    return loaded_seconds > 0 ? static_cast<double>(loaded_tokens) / loaded_seconds : 0;
  }
  // 1 is perfect: nothing was computed twice, on any rank, in any pass.
  double redundancy() const {
    return static_cast<double>(computed_tokens) / static_cast<double>(distinct_tokens);
  }
  // Asked tokens that need not be computed, since the cache held them or another request of the
  // same pass brought them: what IdealHitRate is the limit of.
  double saved_rate() const {
    return 1 - static_cast<double>(computed_tokens) / static_cast<double>(asked_tokens);
  }
  double hit_rate() const {
    return static_cast<double>(cached_tokens) / static_cast<double>(asked_tokens);
  }
};

}  // namespace zp::planner
