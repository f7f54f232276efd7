// The cases of `bench load`. Each starts servers of its own and gives a JSON line.
//
// Thread safety: one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "boost/json/object.hpp"

namespace zp::apps {

struct LoadSetting {
  std::vector<std::string> serve_flags;  // with --model
  int32_t vocab_count = 0;
  int64_t short_tokens = 256;
  int64_t long_tokens = 16'384;
  int32_t long_every = 100;  // of the requests one is long
  int in_flight = 128;       // in a closed loop: enough that passes are full
  double seconds = 20;       // of each load
  double overload = 3;       // times the capacity
  double load = 0.8;         // of the capacity, where it is not to be too much
  double max_backlog_seconds = 10;
  std::string prefix_cache = "512MiB";
  uint64_t seed = 1;
};

// More than the server can do: what it still does, what it tells those that it refuses, its
// memory, and how soon all is as before.
absl::StatusOr<boost::json::object> RunOverload(const LoadSetting& setting);

// The same from the first second of a server's life: nothing is known of its speed yet.
absl::StatusOr<boost::json::object> RunCold(const LoadSetting& setting);

// Short requests with long ones among them, without them, and alone at the same load.
absl::StatusOr<boost::json::object> RunMixed(const LoadSetting& setting, bool has_prefix_cache);

}  // namespace zp::apps
