// Counters, gauges and histograms of this process, in Prometheus' text format.
//
// A room creates its metrics once, at construction, and keeps the references: updating one is an
// atomic add. Thread safety: everything here may be used from any thread.
#pragma once

#include <string>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/labels.h"

namespace zp::base {

using Counter = prometheus::Counter;
using Gauge = prometheus::Gauge;
using Histogram = prometheus::Histogram;
using MetricLabels = prometheus::Labels;

// The same name and labels give the same metric. Live as long as the process.
Counter& GetCounter(const std::string& name,
                    const std::string& help,
                    const MetricLabels& labels = {});
Gauge& GetGauge(const std::string& name, const std::string& help, const MetricLabels& labels = {});
Histogram& GetHistogram(const std::string& name,
                        const std::string& help,
                        const std::vector<double>& bucket_bounds,
                        const MetricLabels& labels = {});

// The page that a scraper reads.
std::string MetricsText();

}  // namespace zp::base
