// What `bench load` reads from the times of requests and answers.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "apps/load_client.h"
#include "boost/json/object.hpp"

namespace zp::apps {

// Poisson arrivals: rising seconds from 0 to `seconds`, so many a second on average.
std::vector<double> PoissonTimes(double per_s, double seconds, std::mt19937_64& random);

// How many were answered with 200 a second: the slope of the line that fits count over time best.
// Answers come pass by pass, so first and last alone would be wrong by up to a pass. Only answers
// from `begin_s` to `end_s` count. 0 for less than two.
double AnswersPerSecond(std::span<const TimedAnswer> answers, double begin_s, double end_s);

// A refusal, what it said and what was true: the seconds until all that had been accepted before
// it were answered.
struct Refusal {
  double at_s = 0;
  double told_s = 0;
  double true_s = 0;
};
// Of the 429 among `answers`, which were sent in their order.
std::vector<Refusal> RefusalsOf(std::span<const TimedAnswer> answers);

// {"count", "within_30_percent", "told_over_true": {"p5", "p50", "p95"}, "true_s": {...}}
boost::json::object ReportRefusals(const std::vector<Refusal>& refusals);

// {"count", "p50_ms", "p99_ms", "max_ms"}
boost::json::object ReportLatency(const std::vector<double>& latencies_s);

}  // namespace zp::apps
