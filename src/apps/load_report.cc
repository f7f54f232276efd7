#include "apps/load_report.h"

#include <algorithm>
#include <cmath>

#include "apps/bench_prompts.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

json::object Spread(const std::vector<double>& values) {
  return {{"p5", Quantile(values, 0.05)},
          {"p50", Quantile(values, 0.5)},
          {"p95", Quantile(values, 0.95)}};
}

}  // namespace

std::vector<double> PoissonTimes(double per_s, double seconds, std::mt19937_64& random) {
  std::exponential_distribution<double> gap(per_s);
  std::vector<double> times;
  for (double time = gap(random); time < seconds; time += gap(random)) {
    times.push_back(time);
  }
  return times;
}

double AnswersPerSecond(std::span<const TimedAnswer> answers, double begin_s, double end_s) {
  std::vector<double> times;
  for (const TimedAnswer& answer : answers) {
    if (answer.status == 200 && answer.done_s >= begin_s && answer.done_s <= end_s) {
      times.push_back(answer.done_s);
    }
  }
  if (times.size() < 2) {
    return 0;
  }
  std::ranges::sort(times);
  const auto count = static_cast<double>(times.size());
  double mean_s = 0;
  for (const double time : times) {
    mean_s += time / count;
  }
  double covariance = 0;
  double variance = 0;
  for (size_t i = 0; i < times.size(); ++i) {
    covariance += (times[i] - mean_s) * (static_cast<double>(i) - (count - 1) / 2);
    variance += (times[i] - mean_s) * (times[i] - mean_s);
  }
  return variance > 0 ? covariance / variance : 0;
}

std::vector<Refusal> RefusalsOf(std::span<const TimedAnswer> answers) {
  std::vector<Refusal> refusals;
  double drained_s = 0;  // when all accepted so far were answered
  for (const TimedAnswer& answer : answers) {
    if (answer.status == 200) {
      drained_s = std::max(drained_s, answer.done_s);
    }
    if (answer.status == 429) {
      refusals.push_back({.at_s = answer.done_s,
                          .told_s = answer.retry_s.value_or(0),
                          .true_s = drained_s - answer.done_s});
    }
  }
  return refusals;
}

json::object ReportRefusals(const std::vector<Refusal>& refusals) {
  if (refusals.empty()) {
    return {{"count", 0}};
  }
  std::vector<double> told;
  std::vector<double> ratios;
  std::vector<double> true_s;
  double right_count = 0;
  for (const Refusal& refusal : refusals) {
    told.push_back(refusal.told_s);
    true_s.push_back(refusal.true_s);
    ratios.push_back(refusal.told_s / std::max(refusal.true_s, 1e-3));
    right_count += std::abs(refusal.told_s - refusal.true_s) <= 0.3 * refusal.true_s ? 1 : 0;
  }
  return {{"count", refusals.size()},
          {"within_30_percent", right_count / static_cast<double>(refusals.size())},
          {"told_s", Spread(told)},
          {"true_s", Spread(true_s)},
          {"told_over_true", Spread(ratios)}};
}

json::object ReportLatency(const std::vector<double>& latencies_s) {
  if (latencies_s.empty()) {
    return {{"count", 0}};
  }
  return {{"count", latencies_s.size()},
          {"p50_ms", 1e3 * Quantile(latencies_s, 0.5)},
          {"p99_ms", 1e3 * Quantile(latencies_s, 0.99)},
          {"max_ms", 1e3 * *std::ranges::max_element(latencies_s)}};
}

}  // namespace zp::apps
