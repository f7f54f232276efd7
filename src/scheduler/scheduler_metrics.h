// What a scraper sees of the serving loop. asked ÷ distinct is what sharing can save, computed ÷
// distinct what is still computed twice (redundancy; 1 is perfect).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "engine/engine.h"
#include "spec/model_spec.h"

namespace zp::scheduler {

// What each layer of a rank's passes cost.
struct LayerMetrics {
  base::Counter& compute_seconds;
  base::Counter& exposed_wait_seconds;
  base::Counter& gather_seconds;
};

struct SchedulerMetrics {
  SchedulerMetrics(const std::string& rank_name, const spec::ModelSpec& spec);

  void RecordPass(const engine::PassReport& report, int64_t pass_distinct_tokens, double seconds);

  base::Gauge& queue_tokens;
  base::Gauge& queue_requests;
  base::Gauge& outstanding_flops;  // exactly 0 when nothing waits or runs
  base::Counter& asked_tokens;
  base::Counter& computed_tokens;
  base::Counter& distinct_tokens;
  base::Counter& flops;
  base::Counter& exposed_wait_seconds;
  base::Counter& between_passes_seconds;
  base::Counter& hold_seconds;
  base::Histogram& batch_tokens;
  base::Histogram& pass_seconds;
  base::Histogram& queue_seconds;
  base::Gauge& pass_start_time_seconds;  // Unix time; 0 while no pass runs
  // zeroprefill_works_total by outcome.
  base::Counter& answered;
  base::Counter& failed;
  base::Counter& cancelled;
  base::Counter& expired;      // their deadline passed
  base::Counter& refused;      // the queue was full
  base::Counter& unavailable;  // accepted, but the process shut down first
  std::vector<LayerMetrics> layers;
  // How many tokens a pass needs for its compute to hide the next bank; 0 where everything is in
  // memory.
  base::Gauge& saturation_tokens;
  // hit / queried is what the prefix cache saves, of what sharing within a pass leaves.
  base::Counter& cache_queried_tokens;
  base::Counter& cache_hit_tokens;
  base::Counter& cache_evicted_blocks;
  base::Gauge& cache_bytes;

 private:
  void RecordLayers(const engine::PassReport& report);

  const std::string rank_;
};

}  // namespace zp::scheduler
