// The client of `bench load`: requests at given times or so many at once, over as many kept-alive
// connections as that takes, all from one thread.
//
// Apart from the demo's client since time is what it is for: a request is sent when its time has
// come, whether earlier ones were answered or not, and each answer says when it came.
//
// Thread safety: one thread. Errors: Unavailable where the server cannot be reached or hangs up; an
// answer of any HTTP status is an answer.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/demo_client.h"
#include "base/status.h"

namespace zp::apps {

struct TimedRequest {
  double at_s = 0;  // from now on
  const std::string* body = nullptr;
};

// Times are those of LoadClient::Now.
struct TimedAnswer {
  int status = 0;
  double due_s = 0;  // when it was to be sent; latency counts from here
  double sent_s = 0;
  double done_s = 0;
  std::optional<double> retry_s = {};  // Retry-After
  std::string body = {};               // of refusals and errors

  double latency_s() const { return done_s - due_s; }
};

class LoadClient {
 public:
  // Every request is a POST to `path`.
  static absl::StatusOr<std::unique_ptr<LoadClient>> Create(const ServerAddress& address,
                                                            const std::string& path);
  ~LoadClient();
  LoadClient(const LoadClient&) = delete;
  LoadClient& operator=(const LoadClient&) = delete;

  // Seconds since it was created.
  double Now() const;

  // Open loop: each at its time. Returns when all are answered, in the order of `requests`.
  // REQUIRES: rising at_s; the bodies live until it returns.
  absl::StatusOr<std::vector<TimedAnswer>> SendAt(const std::vector<TimedRequest>& requests);

  // Closed loop: so many in flight for so long, the bodies in turn, from where
  // the last call ended. In the order of the answers.
  absl::StatusOr<std::vector<TimedAnswer>> KeepInFlight(const std::vector<std::string>& bodies,
                                                        int in_flight,
                                                        double seconds);

 private:
  class State;
  explicit LoadClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace zp::apps
