// What a scraper sees of the serving loop. asked ÷ distinct is what sharing can save, computed ÷
// distinct what is still computed twice (redundancy; 1 is perfect).
#pragma once

#include <cstdint>

#include "base/metrics.h"
#include "engine/engine.h"

namespace zp::scheduler {

struct SchedulerMetrics {
  SchedulerMetrics();

  void RecordPass(const engine::PassReport& report, int64_t pass_distinct_tokens, double seconds);

  base::Gauge& queue_tokens;
  base::Gauge& queue_requests;
  base::Counter& asked_tokens;
  base::Counter& computed_tokens;
  base::Counter& distinct_tokens;
  base::Counter& flops;
  base::Counter& exposed_wait_seconds;
  base::Histogram& batch_tokens;
  base::Histogram& pass_seconds;
  base::Histogram& queue_seconds;
  // zeroprefill_works_total by outcome.
  base::Counter& answered;
  base::Counter& failed;
  base::Counter& cancelled;
  base::Counter& refused;      // the queue was full
  base::Counter& unavailable;  // accepted, but the process shut down first
};

}  // namespace zp::scheduler
