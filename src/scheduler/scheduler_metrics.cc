#include "scheduler/scheduler_metrics.h"

#include <string>
#include <vector>

namespace zp::scheduler {
namespace {

using base::GetCounter;
using base::GetGauge;
using base::GetHistogram;

base::Counter& Outcome(const std::string& outcome) {
  return GetCounter(
      "zeroprefill_works_total", "Units of work by what became of them", {{"outcome", outcome}});
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

SchedulerMetrics::SchedulerMetrics()
    : queue_tokens(GetGauge("zeroprefill_queue_tokens", "Tokens that wait for a pass")),
      queue_requests(GetGauge("zeroprefill_queue_requests", "Units of work that wait for a pass")),
      asked_tokens(GetCounter("zeroprefill_asked_tokens_total", "Tokens of all sequences run")),
      computed_tokens(GetCounter("zeroprefill_computed_tokens_total",
                                 "Tokens computed, after sharing prefixes")),
      distinct_tokens(GetCounter("zeroprefill_distinct_tokens_total",
                                 "Distinct tokens of each pass, in blocks of 16")),
      flops(GetCounter("zeroprefill_flops_total", "True floating-point operations")),
      exposed_wait_seconds(GetCounter("zeroprefill_exposed_wait_seconds_total",
                                      "Seconds that compute stood still for weights")),
      batch_tokens(GetHistogram(
          "zeroprefill_batch_tokens", "Tokens computed in a pass", PowersOfTwo(16, 14))),
      pass_seconds(GetHistogram(
          "zeroprefill_pass_seconds", "Seconds of a forward pass", PowersOfTwo(0.001, 16))),
      queue_seconds(GetHistogram("zeroprefill_queue_seconds",
                                 "Seconds a unit of work waited for its pass",
                                 PowersOfTwo(0.001, 16))),
      answered(Outcome("answered")),
      failed(Outcome("failed")),
      cancelled(Outcome("cancelled")),
      refused(Outcome("refused")),
      unavailable(Outcome("unavailable")) {}

void SchedulerMetrics::RecordPass(const engine::PassReport& report,
                                  int64_t pass_distinct_tokens,
                                  double seconds) {
  asked_tokens.Increment(static_cast<double>(report.asked_tokens));
  computed_tokens.Increment(static_cast<double>(report.computed_tokens));
  distinct_tokens.Increment(static_cast<double>(pass_distinct_tokens));
  flops.Increment(report.flops);
  exposed_wait_seconds.Increment(report.exposed_wait_seconds);
  batch_tokens.Observe(static_cast<double>(report.computed_tokens));
  pass_seconds.Observe(seconds);
}

}  // namespace zp::scheduler
