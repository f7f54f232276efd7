// What a scraper sees of the requests to one path: how many were answered how, and how fast.
//
// Thread safety: any thread. Looking a series up by its labels costs more than refusing a request,
// so each is looked up once.
#pragma once

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/metrics.h"

namespace zp::gateway {

class RequestMetrics {
 public:
  // `handler`: the path, one of few.
  explicit RequestMetrics(std::string handler);

  // From the whole request read to its answer.
  void Count(int http_status, double seconds);

 private:
  base::Counter& CounterOf(int http_status);

  const std::string handler_;
  base::Histogram& seconds_;
  absl::Mutex mutex_;
  std::map<int, base::Counter*> counters_ ABSL_GUARDED_BY(mutex_);  // by HTTP status
};

}  // namespace zp::gateway
