// What happened when, as a file that chrome://tracing and Perfetto open: one process per rank, one
// line per track, one bar per event.
//
// Thread safety: Add from any thread, without locks or allocation; Write once nobody adds any more.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace zp::base {

struct TraceEvent {
  std::string_view track = {};  // string literals: they must outlive the trace
  std::string_view name = {};
  int32_t rank = 0;
  int32_t layer = -1;  // -1: of no layer
  int64_t bytes = 0;   // moved; 0: nothing moved
  std::chrono::steady_clock::time_point begin = {};
  std::chrono::steady_clock::time_point end = {};
};

class Trace {
 public:
  // The first `capacity` events are kept, the others are counted.
  explicit Trace(size_t capacity = 1'000'000);

  void Add(const TraceEvent& event);

  // Times count from the construction. NotFound / Unknown with the path if it cannot be written.
  absl::Status Write(const std::string& path) const;

 private:
  const std::chrono::steady_clock::time_point start_;
  std::vector<TraceEvent> events_;
  std::atomic<size_t> count_{0};
};

}  // namespace zp::base
