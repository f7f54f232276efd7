// What the cases of `bench load` share: the server and its client, prompts, and what a closed loop
// shows.
//
// Thread safety: one thread. Ownership: a LoadBench ends its server.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "apps/load_cases.h"
#include "apps/load_client.h"
#include "apps/load_server.h"

namespace zp::apps {

// Bodies that take turns: more than can be outstanding at once, so that none is there twice.
constexpr int kLoadBodyCount = 8192;

// The most likely token after random ones: nothing is shared, and little is answered.
std::string RandomBody(const LoadSetting& setting, int64_t tokens, std::mt19937_64& random);
std::vector<std::string> RandomBodies(const LoadSetting& setting,
                                      int64_t tokens,
                                      int count,
                                      std::mt19937_64& random);

// Of those that were answered with 200.
std::vector<double> LatenciesOf(const std::vector<TimedAnswer>& answers);

// What the server's gateway has done since it started, and what that took.
struct GatewayWork {
  double cpu_s = 0;
  double answered = 0;
  double refused = 0;  // 429
};

class LoadBench {
 public:
  static absl::StatusOr<std::unique_ptr<LoadBench>> Start(
      const LoadSetting& setting, const std::vector<std::string>& more_flags);

  LoadServer& server() { return *server_; }
  LoadClient& client() { return *client_; }

  // Short requests answered a second while as many as fill its passes are in flight.
  absl::StatusOr<double> MeasureCapacity(const std::vector<std::string>& bodies);

  absl::StatusOr<GatewayWork> ReadGatewayWork() const;

  // {"count", "mean_ms", "mean_tokens", "cached_tokens"} of the passes since the last call.
  absl::StatusOr<boost::json::object> TakePasses();

 private:
  explicit LoadBench(const LoadSetting& setting) : setting_(setting) {}

  const LoadSetting setting_;
  std::unique_ptr<LoadServer> server_;
  std::unique_ptr<LoadClient> client_;
  MetricsPage page_;
};

}  // namespace zp::apps
