#include "gateway/http_connection.h"

#include <sys/socket.h>

#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/logging.h"
#include "boost/asio/any_io_executor.hpp"
#include "boost/asio/as_tuple.hpp"
#include "boost/asio/buffer.hpp"
#include "boost/asio/dispatch.hpp"
#include "boost/asio/experimental/awaitable_operators.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/use_awaitable.hpp"
#include "boost/asio/write.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/core/tcp_stream.hpp"
#include "boost/beast/http.hpp"
#include "fmt/format.h"
#include "gateway/errors.h"

namespace zp::gateway {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kNoThrow = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 64 << 10;
constexpr std::chrono::seconds kLingerTimeout{2};

// Counts something in the shared state for as long as it lives.
class OpenCount {
 public:
  OpenCount(absl::Mutex& mutex, size_t& count) : mutex_(mutex), count_(count) { Add(1); }
  ~OpenCount() { Add(-1); }
  OpenCount(const OpenCount&) = delete;
  OpenCount& operator=(const OpenCount&) = delete;

 private:
  void Add(int change) {
    const absl::MutexLock lock(&mutex_);
    count_ += change;
  }
  absl::Mutex& mutex_;
  size_t& count_;
};

// A request that the handler has. It refers to the server's executor, so it counts as open until
// nobody holds it any more: neither the connection nor the handler, on whichever thread.
struct Call {
  Call(HttpShared& shared, const asio::any_io_executor& of_connection)
      : open(shared.mutex, shared.open_handlers),
        executor(of_connection),
        answered(of_connection, asio::steady_timer::time_point::max()) {}

  const OpenCount open;  // first, so that it goes last
  const asio::any_io_executor executor;
  // The rest is touched on that executor alone.
  std::optional<Response> response;
  asio::steady_timer answered;  // expires when the response is there
};

// What the handler calls, on whichever thread: on the connection's own the answer is there when
// this returns.
void Answer(const std::shared_ptr<Call>& call, Response response) {
  asio::dispatch(call->executor, [call, response = std::move(response)]() mutable {
    call->response = std::move(response);
    call->answered.expires_at(asio::steady_timer::time_point::min());
  });
}

// This request's part of the memory that all bodies may take together.
class BodyReservation {
 public:
  explicit BodyReservation(HttpShared& shared) : shared_(shared) {}
  ~BodyReservation() { shared_.buffered_bytes -= bytes_; }
  BodyReservation(const BodyReservation&) = delete;
  BodyReservation& operator=(const BodyReservation&) = delete;

  // False when the server holds too much already.
  bool GrowTo(size_t bytes) {
    if (bytes <= bytes_) {
      return true;
    }
    shared_.buffered_bytes += bytes - bytes_;
    bytes_ = bytes;
    return shared_.buffered_bytes <= shared_.options.max_buffered_bytes;
  }

 private:
  HttpShared& shared_;
  size_t bytes_ = 0;
};

Response TooLarge(const HttpOptions& options) {
  return ErrorResponse(
      413,
      "body_too_large",
      fmt::format("the body is larger than the limit of {} bytes", options.max_body_bytes));
}

// A client's own id is kept if it is short and plain, since it goes into logs and headers.
std::string CleanRequestId(beast::string_view id) {
  constexpr size_t kMaxLength = 128;
  const bool is_plain = std::all_of(id.begin(), id.end(), [](char c) { return c > 32 && c < 127; });
  return is_plain && id.size() <= kMaxLength ? std::string(id) : "";
}

class Connection {
 public:
  Connection(asio::ip::tcp::socket socket, HttpShared& shared)
      : shared_(shared), options_(shared.options), stream_(std::move(socket)) {}

  asio::awaitable<void> Serve() {
    // Not `while (co_await ... && co_await ...)`: GCC 12 takes the first for true.
    bool is_open = true;
    while (is_open) {
      is_open = co_await WaitForRequest();
      if (is_open) {
        is_open = co_await ServeRequest();
      }
    }
    error_code ignored;
    stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
  }

 private:
  using Parser = http::request_parser<http::string_body>;

  // Until the first byte: an idle client may keep its connection for a while.
  asio::awaitable<bool> WaitForRequest() {
    if (buffer_.size() > 0) {
      co_return true;
    }
    stream_.expires_after(options_.idle_timeout);
    const auto [error, byte_count] =
        co_await stream_.async_read_some(buffer_.prepare(kReadBytes), kNoThrow);
    buffer_.commit(byte_count);
    co_return !error;
  }

  // Whether the connection can serve another.
  asio::awaitable<bool> ServeRequest() {
    Parser parser;
    parser.header_limit(static_cast<uint32_t>(options_.max_header_bytes));
    parser.body_limit(options_.max_body_bytes);
    stream_.expires_after(options_.header_timeout);
    const auto [error, ignored] =
        co_await http::async_read_header(stream_, buffer_, parser, kNoThrow);
    if (error) {
      co_return co_await Refuse(error);
    }
    const OpenCount open(shared_.mutex, shared_.open_requests);
    BodyReservation reservation(shared_);
    if (std::optional<Response> problem = co_await ReadBody(parser, reservation)) {
      if (problem->status != 0) {
        co_await WriteAndLinger(*problem);
      }
      co_return false;
    }
    const bool is_head = parser.get().method() == http::verb::head;
    const bool keep_alive = parser.get().keep_alive();
    std::optional<Response> response = co_await CallHandler(TakeRequest(parser));
    if (!response.has_value()) {
      co_return false;  // the client left
    }
    co_return co_await Write(*response, is_head, keep_alive && !shared_.is_draining);
  }

  // The answer to what is no HTTP request, or none to a client that left or is too slow.
  asio::awaitable<bool> Refuse(error_code error) {
    if (error == http::error::header_limit) {
      co_await WriteAndLinger(ErrorResponse(
          431,
          "header_too_large",
          fmt::format("the header is larger than {} bytes", options_.max_header_bytes)));
    } else if (error == http::error::body_limit) {
      co_await WriteAndLinger(TooLarge(options_));
    } else if (error.category() == make_error_code(http::error::bad_method).category() &&
               error != http::error::end_of_stream && error != http::error::partial_message) {
      co_await WriteAndLinger(ErrorResponse(
          400, "bad_request", fmt::format("not an HTTP request: {}", error.message())));
    }
    co_return false;
  }

  // Nothing when the body is there; else the answer to give, with status 0 when nobody is there to
  // get one.
  asio::awaitable<std::optional<Response>> ReadBody(Parser& parser, BodyReservation& reservation) {
    if (std::distance(parser.get().begin(), parser.get().end()) >
        static_cast<std::ptrdiff_t>(options_.max_header_count)) {
      co_return ErrorResponse(
          431,
          "header_too_large",
          fmt::format("there are more than {} header fields", options_.max_header_count));
    }
    stream_.expires_after(options_.body_timeout);
    if (beast::iequals(parser.get()[http::field::expect], "100-continue") && !parser.is_done()) {
      constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
      co_await asio::async_write(stream_, asio::buffer(kContinue), kNoThrow);
    }
    while (!parser.is_done()) {
      const auto [error, ignored] =
          co_await http::async_read_some(stream_, buffer_, parser, kNoThrow);
      if (error == http::error::body_limit) {
        co_return TooLarge(options_);
      }
      if (error.category() == make_error_code(http::error::bad_chunk).category() &&
          error != http::error::partial_message) {
        co_return ErrorResponse(
            400, "bad_request", fmt::format("the body is broken: {}", error.message()));
      }
      if (error) {
        co_return Response{.status = 0};
      }
      if (!reservation.GrowTo(parser.get().body().capacity())) {
        co_return ErrorResponse(absl::UnavailableError(fmt::format(
            "the server holds {} bytes of requests already", options_.max_buffered_bytes)));
      }
    }
    co_return std::nullopt;
  }

  static Request TakeRequest(Parser& parser) {
    http::request<http::string_body> message = parser.release();
    const beast::string_view target = message.target();
    return {.method =
                message.method() == http::verb::head ? "GET" : std::string(message.method_string()),
            .path = std::string(target.substr(0, target.find('?'))),
            .body = std::move(message.body()),
            .request_id = CleanRequestId(message["X-Request-Id"]),
            .timeout_ms = std::string(message["X-Request-Timeout-Ms"])};
  }

  // Hands the request over and waits for its answer; nothing if the client leaves before.
  asio::awaitable<std::optional<Response>> CallHandler(Request request) {
    using asio::experimental::awaitable_operators::operator||;
    std::stop_source cancel;
    const std::stop_callback forward(shared_.stop_requests.get_token(),
                                     [&cancel] { cancel.request_stop(); });
    stream_.expires_never();
    const auto call = std::make_shared<Call>(shared_, stream_.get_executor());
    shared_.handler(std::move(request), cancel.get_token(), [call](Response response) {
      Answer(call, std::move(response));
    });
    if (!call->response.has_value()) {  // refusals are there at once
      co_await (call->answered.async_wait(kNoThrow) || WatchForLeaving(cancel));
    }
    if (cancel.stop_requested()) {
      co_return std::nullopt;
    }
    co_return std::move(call->response);
  }

  // Ends when the client has gone, after asking for a stop. A client that sends its next request
  // early is still there.
  asio::awaitable<void> WatchForLeaving(std::stop_source& cancel) {
    const auto [error] =
        co_await stream_.socket().async_wait(asio::ip::tcp::socket::wait_read, kNoThrow);
    if (error == asio::error::operation_aborted) {
      co_return;  // the answer came first
    }
    char byte = 0;
    const ssize_t received =
        recv(stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    const bool is_there = received > 0 || (received < 0 && errno == EAGAIN);
    if (!is_there) {
      cancel.request_stop();
      co_return;
    }
    asio::steady_timer forever(stream_.get_executor(), asio::steady_timer::time_point::max());
    co_await forever.async_wait(kNoThrow);
  }

  template <typename Message>
  static void SetHeaders(const Response& response, bool keep_alive, Message& message) {
    message.result(static_cast<unsigned>(response.status));
    message.set(http::field::server, "zeroprefill");
    message.set(http::field::content_type, response.content_type);
    for (const auto& [name, value] : response.headers) {
      message.set(name, value);
    }
    message.keep_alive(keep_alive);
    message.content_length(response.body.size());
  }

  asio::awaitable<bool> Write(Response& response, bool is_head, bool keep_alive) {
    stream_.expires_after(options_.write_timeout);
    http::response<http::string_body> message;
    SetHeaders(response, keep_alive, message);
    message.body() = std::move(response.body);
    http::response_serializer<http::string_body> serializer(message);
    if (is_head) {
      const auto [error, ignored] =
          co_await http::async_write_header(stream_, serializer, kNoThrow);
      co_return !error && keep_alive;
    }
    const auto [error, ignored] = co_await http::async_write(stream_, serializer, kNoThrow);
    co_return !error && keep_alive;
  }

  // For answers before the request was read to its end: closing at once would reset the connection
  // and the client might never see the answer.
  asio::awaitable<void> WriteAndLinger(Response response) {
    const bool is_written = co_await WriteLast(response);
    if (!is_written) {
      co_return;
    }
    error_code shutdown_error;
    stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, shutdown_error);
    stream_.expires_after(kLingerTimeout);
    buffer_.clear();
    for (;;) {
      const auto [error, ignored] =
          co_await stream_.async_read_some(buffer_.prepare(kReadBytes), kNoThrow);
      if (error) {
        co_return;
      }
    }
  }

  asio::awaitable<bool> WriteLast(Response& response) {
    stream_.expires_after(options_.write_timeout);
    http::response<http::string_body> message;
    SetHeaders(response, /*keep_alive=*/false, message);
    message.body() = std::move(response.body);
    const auto [error, ignored] = co_await http::async_write(stream_, message, kNoThrow);
    co_return !error;
  }

  HttpShared& shared_;
  const HttpOptions& options_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
};

}  // namespace

asio::awaitable<void> ServeConnection(asio::ip::tcp::socket socket, HttpShared& shared) {
  Connection connection(std::move(socket), shared);
  try {
    co_await connection.Serve();
  } catch (const std::exception& error) {
    base::log::warn("a connection ended: {}", error.what());
  }
  --shared.connection_count;
}

}  // namespace zp::gateway
