#include "base/metrics.h"

#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace zp::base {
namespace {

prometheus::Registry& GlobalRegistry() {
  static prometheus::Registry& registry =
      *new prometheus::Registry(prometheus::Registry::InsertBehavior::Merge);
  return registry;
}

}  // namespace

Counter& GetCounter(const std::string& name, const std::string& help, const MetricLabels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(GlobalRegistry()).Add(labels);
}

Gauge& GetGauge(const std::string& name, const std::string& help, const MetricLabels& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(GlobalRegistry()).Add(labels);
}

Histogram& GetHistogram(const std::string& name,
                        const std::string& help,
                        const std::vector<double>& bucket_bounds,
                        const MetricLabels& labels) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(GlobalRegistry())
      .Add(labels, bucket_bounds);
}

std::string MetricsText() {
  return prometheus::TextSerializer().Serialize(GlobalRegistry().Collect());
}

}  // namespace zp::base
