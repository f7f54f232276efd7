// One client's connection: reads requests, hands them to the handler, writes the answers, in order.
// Private to the HTTP server.
#pragma once

#include <atomic>
#include <cstddef>
#include <stop_token>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "boost/asio/awaitable.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "gateway/http_server.h"
#include "gateway/message.h"

namespace zp::gateway {

// What all connections of a server share.
struct HttpShared {
  HttpShared(const HttpOptions& http_options, Handler request_handler)
      : options(http_options), handler(std::move(request_handler)) {}

  const HttpOptions options;
  const Handler handler;
  std::atomic<size_t> connection_count = 0;
  std::atomic<size_t> buffered_bytes = 0;  // bodies being read or handled
  std::stop_source stop_requests;          // the server ends: nobody waits for answers any more
  std::atomic<bool> is_draining = false;   // answers carry Connection: close

  absl::Mutex mutex;
  size_t open_requests ABSL_GUARDED_BY(mutex) = 0;  // header read, answer not yet written
  size_t open_handlers ABSL_GUARDED_BY(mutex) =
      0;  // answers that a handler or a connection still holds
};

// Serves `socket` until either side closes it. Never throws.
boost::asio::awaitable<void> ServeConnection(boost::asio::ip::tcp::socket socket,
                                             HttpShared& shared);

}  // namespace zp::gateway
