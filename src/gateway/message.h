// A request and its answer without the wire: what HTTP, a batch file or a test hands to the
// Service.
#pragma once

#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "protocol/work.h"

namespace zp::gateway {

struct Request {
  std::string method;  // "GET", "POST"
  std::string path;    // without the query string
  std::string body;
  std::string request_id;  // goes into logs and answers; made up where empty
  // X-Request-Timeout-Ms as the client wrote it: how long it will wait. Empty: it did not say.
  std::string timeout_ms = {};
};

struct Response {
  int status = 200;  // HTTP
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};  // Allow, Retry-After
  std::optional<protocol::Usage> usage = {};                      // where a forward pass answered
};

// Answers a request: calls `done` exactly once, from any thread, at once or later. A stop through
// `cancel` means that nobody waits any more; `done` is called all the same.
using Handler = std::function<void(
    Request request, std::stop_token cancel, std::function<void(Response)> done)>;

}  // namespace zp::gateway
