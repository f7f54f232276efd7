// The server of `bench load`: `zeroprefill serve` in a process of its own, so that its memory is
// its own, and what can be seen of it from outside.
//
// Thread safety: one thread; one internal thread looks at the memory. Ownership: the destructor
// ends the process.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "apps/child_process.h"
#include "apps/demo_client.h"
#include "base/status.h"

namespace zp::apps {

// The series of a metrics page by what stands before the value: `name{label="x"}`.
using MetricsPage = std::map<std::string, double>;
MetricsPage ParseMetrics(const std::string& page);

class LoadServer {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // `flags` of serve, with --model. Returns when it is ready.
  static absl::StatusOr<std::unique_ptr<LoadServer>> Start(const std::vector<std::string>& flags);

  const ServerAddress& address() const { return address_; }
  absl::StatusOr<MetricsPage> ReadMetrics() const;
  // CPU that the threads which move, parse and answer requests have used; none of the passes.
  double GatewayCpuSeconds() const;
  // The most resident bytes that were seen from one time to the other; 0 if nobody looked then.
  int64_t PeakBytes(TimePoint begin, TimePoint end) const;

 private:
  LoadServer(std::unique_ptr<ChildProcess> process, ServerAddress address);
  int64_t ResidentBytes() const;

  const std::unique_ptr<ChildProcess> process_;
  const ServerAddress address_;
  mutable std::mutex mutex_;
  std::vector<std::pair<TimePoint, int64_t>> resident_bytes_;  // guarded by mutex_
  std::jthread watch_;                                         // last: it uses all of the above
};

}  // namespace zp::apps
