#include "gateway/request_metrics.h"

#include <utility>

namespace zp::gateway {

RequestMetrics::RequestMetrics(std::string handler)
    : handler_(std::move(handler)),
      seconds_(base::GetHistogram("zeroprefill_request_seconds",
                                  "From the whole request read to its answer",
                                  {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100},
                                  {{"handler", handler_}})) {}

void RequestMetrics::Count(int http_status, double seconds) {
  CounterOf(http_status).Increment();
  seconds_.Observe(seconds);
}

base::Counter& RequestMetrics::CounterOf(int http_status) {
  const absl::MutexLock lock(&mutex_);
  base::Counter*& counter = counters_[http_status];
  if (counter == nullptr) {
    counter = &base::GetCounter("zeroprefill_requests_total",
                                "Requests answered",
                                {{"handler", handler_}, {"status", std::to_string(http_status)}});
  }
  return *counter;
}

}  // namespace zp::gateway
