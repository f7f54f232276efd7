#include "scheduler/scheduler_metrics.h"

#include <string>
#include <vector>

namespace zp::scheduler {
namespace {

using base::GetCounter;
using base::GetGauge;
using base::GetHistogram;

base::MetricLabels OfRank(const std::string& rank) { return {{"rank", rank}}; }

base::Counter& Outcome(const std::string& rank, const std::string& outcome) {
  return GetCounter("zeroprefill_works_total",
                    "Units of work by what became of them",
                    {{"rank", rank}, {"outcome", outcome}});
}

std::vector<LayerMetrics> LayersOf(const std::string& rank, const spec::ModelSpec& spec) {
  std::vector<LayerMetrics> layers;
  for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
    const base::MetricLabels labels = {{"rank", rank}, {"layer", std::to_string(layer)}};
    layers.push_back(
        {.compute_seconds = GetCounter(
             "zeroprefill_layer_compute_seconds_total", "Seconds a layer computed", labels),
         .exposed_wait_seconds = GetCounter("zeroprefill_layer_exposed_wait_seconds_total",
                                            "Seconds a layer stood still for its experts",
                                            labels),
         .gather_seconds = GetCounter("zeroprefill_layer_gather_seconds_total",
                                      "Seconds a layer's experts were on their way",
                                      labels)});
  }
  return layers;
}

std::vector<double> PowersOfTwo(double first, int count) {
  std::vector<double> bounds;
  bounds.reserve(count);
  for (int i = 0; i < count; ++i) {
    bounds.push_back(first * static_cast<double>(int64_t{1} << i));
  }
  return bounds;
}

}  // namespace

SchedulerMetrics::SchedulerMetrics(const std::string& rank_name, const spec::ModelSpec& spec)
    : queue_tokens(
          GetGauge("zeroprefill_queue_tokens", "Tokens that wait for a pass", OfRank(rank_name))),
      queue_requests(GetGauge(
          "zeroprefill_queue_requests", "Units of work that wait for a pass", OfRank(rank_name))),
      outstanding_flops(GetGauge("zeroprefill_outstanding_flops",
                                 "Work that waits or runs, in true FLOPs as if each ran alone",
                                 OfRank(rank_name))),
      asked_tokens(GetCounter(
          "zeroprefill_asked_tokens_total", "Tokens of all sequences run", OfRank(rank_name))),
      computed_tokens(GetCounter("zeroprefill_computed_tokens_total",
                                 "Tokens computed, after sharing prefixes",
                                 OfRank(rank_name))),
      distinct_tokens(GetCounter("zeroprefill_distinct_tokens_total",
                                 "Distinct tokens of each pass, in blocks of 16",
                                 OfRank(rank_name))),
      flops(GetCounter(
          "zeroprefill_flops_total", "True floating-point operations", OfRank(rank_name))),
      exposed_wait_seconds(GetCounter("zeroprefill_exposed_wait_seconds_total",
                                      "Seconds that compute stood still for weights",
                                      OfRank(rank_name))),
      between_passes_seconds(GetCounter("zeroprefill_between_passes_seconds_total",
                                        "Seconds from the end of a pass to the next one's start "
                                        "where work was waiting",
                                        OfRank(rank_name))),
      hold_seconds(GetCounter("zeroprefill_hold_seconds_total",
                              "Seconds that work was held for company",
                              OfRank(rank_name))),
      batch_tokens(GetHistogram("zeroprefill_batch_tokens",
                                "Tokens computed in a pass",
                                PowersOfTwo(16, 14),
                                OfRank(rank_name))),
      pass_seconds(GetHistogram("zeroprefill_pass_seconds",
                                "Seconds of a forward pass",
                                PowersOfTwo(0.001, 16),
                                OfRank(rank_name))),
      queue_seconds(GetHistogram("zeroprefill_queue_seconds",
                                 "Seconds a unit of work waited for its pass",
                                 PowersOfTwo(0.001, 16),
                                 OfRank(rank_name))),
      pass_start_time_seconds(
          GetGauge("zeroprefill_pass_start_time_seconds",
                   "Unix time at which the pass began that runs; 0 while none runs",
                   OfRank(rank_name))),
      answered(Outcome(rank_name, "answered")),
      failed(Outcome(rank_name, "failed")),
      cancelled(Outcome(rank_name, "cancelled")),
      expired(Outcome(rank_name, "expired")),
      refused(Outcome(rank_name, "refused")),
      unavailable(Outcome(rank_name, "unavailable")),
      layers(LayersOf(rank_name, spec)),
      saturation_tokens(GetGauge("zeroprefill_saturation_tokens",
                                 "Tokens of a pass whose compute hides the next gather",
                                 OfRank(rank_name))),
      cache_queried_tokens(GetCounter("zeroprefill_prefix_cache_queried_tokens_total",
                                      "Tokens, after sharing, that were looked for in the cache",
                                      OfRank(rank_name))),
      cache_hit_tokens(GetCounter("zeroprefill_prefix_cache_hit_tokens_total",
                                  "Tokens not computed, since the prefix cache held them",
                                  OfRank(rank_name))),
      cache_evicted_blocks(GetCounter("zeroprefill_prefix_cache_evicted_blocks_total",
                                      "Blocks of 16 tokens that made room for others",
                                      OfRank(rank_name))),
      cache_bytes(GetGauge("zeroprefill_prefix_cache_bytes",
                           "K and V that the prefix cache holds",
                           OfRank(rank_name))),
      rank_(rank_name) {}

void SchedulerMetrics::RecordPass(const engine::PassReport& report,
                                  int64_t pass_distinct_tokens,
                                  double seconds) {
  asked_tokens.Increment(static_cast<double>(report.asked_tokens));
  computed_tokens.Increment(static_cast<double>(report.computed_tokens));
  distinct_tokens.Increment(static_cast<double>(pass_distinct_tokens));
  flops.Increment(report.flops);
  exposed_wait_seconds.Increment(report.exposed_wait_seconds);
  cache_queried_tokens.Increment(static_cast<double>(report.cache_queried_tokens));
  cache_hit_tokens.Increment(static_cast<double>(report.cached_tokens));
  cache_evicted_blocks.Increment(static_cast<double>(report.cache_events.removed.size()));
  cache_bytes.Set(static_cast<double>(report.cache_held_bytes));
  batch_tokens.Observe(static_cast<double>(report.computed_tokens));
  pass_seconds.Observe(seconds);
  RecordLayers(report);
}

void SchedulerMetrics::RecordLayers(const engine::PassReport& report) {
  for (size_t index = 0; index < report.layers.size(); ++index) {
    const engine::LayerReport& layer = report.layers[index];
    layers[index].compute_seconds.Increment(layer.compute_seconds);
    layers[index].exposed_wait_seconds.Increment(layer.exposed_wait_seconds);
    layers[index].gather_seconds.Increment(layer.gather_seconds);
  }
  for (const auto& [source, bytes] : report.gathered_bytes_by_source) {
    GetCounter("zeroprefill_gathered_bytes_total",
               "Bytes of experts that came from elsewhere",
               {{"rank", rank_}, {"source", source}})
        .Increment(static_cast<double>(bytes));
  }
}

}  // namespace zp::scheduler
