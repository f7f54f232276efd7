// The demo's HTTP client: many requests over a few kept-alive connections, all from one thread.
//
// Thread safety: free functions; each call has its own connections.
// Errors: Unavailable with the address when the server cannot be reached or hangs up; an answer of
// any HTTP status is an answer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace zp::apps {

struct ServerAddress {
  std::string host;
  uint16_t port = 0;
};

// "http://127.0.0.1:8000"; InvalidArgument otherwise.
absl::StatusOr<ServerAddress> ParseUrl(const std::string& url);

struct HttpAnswer {
  int status = 0;
  std::string body;
};

absl::StatusOr<HttpAnswer> Get(const ServerAddress& address, const std::string& path);

// Posts every body to `path`, `connection_count` at a time; answers stand in the order of the
// bodies.
absl::StatusOr<std::vector<HttpAnswer>> PostAll(const ServerAddress& address,
                                                const std::string& path,
                                                const std::vector<std::string>& bodies,
                                                int connection_count);

}  // namespace zp::apps
