// HTTP/1.1 in front of a Handler: connections, limits, time-outs, clients that leave, and an
// orderly end. The one place that knows sockets.
//
// Every limit is there from the start, because each one missing is a way to bring a server down:
// size and number of headers, size of a body and of all bodies together, time to send them, number
// of connections.
//
// Thread safety: port, Drain and the destructor from one thread.
// Ownership: the handler must outlive the server and answer every request it was given.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "gateway/message.h"

namespace zp::gateway {

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  int thread_count = 1;  // they move bytes only
  size_t max_connections = 1024;
  size_t max_header_bytes = 16 << 10;
  size_t max_header_count = 100;
  size_t max_body_bytes = 32 << 20;
  size_t max_buffered_bytes = 512 << 20;  // the bodies of all open requests together
  std::chrono::milliseconds idle_timeout{75'000};
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{60'000};
  std::chrono::milliseconds write_timeout{60'000};
};

class HttpServer {
 public:
  // Listens, or says why not ("cannot listen on 0.0.0.0:80: Permission denied").
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options,
                                                           Handler handler);
  // Whether Start would listen now: known before a model is loaded, which takes minutes.
  static absl::Status CheckAddress(const HttpOptions& options);
  // Closes all connections, asks open requests to stop and waits for the handler to answer them.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;

  // Accepts no more connections and waits until the requests in flight have their answers, at most
  // `deadline`. Returns how many are still open then.
  size_t Drain(std::chrono::milliseconds deadline);

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace zp::gateway
