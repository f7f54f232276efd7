#include "gateway/http_server.h"

#include <thread>
#include <utility>
#include <vector>

#include "base/logging.h"
#include "base/thread_name.h"
#include "boost/asio/as_tuple.hpp"
#include "boost/asio/co_spawn.hpp"
#include "boost/asio/detached.hpp"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/strand.hpp"
#include "boost/asio/use_awaitable.hpp"
#include "fmt/format.h"
#include "gateway/errors.h"
#include "gateway/http_connection.h"

namespace zp::gateway {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kNoThrow = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::milliseconds kAcceptPause{50};  // when the system has no descriptor left

// Says that the server is full, without waiting for the client to read it.
void TurnAway(tcp::socket& socket) {
  const Response response =
      ErrorResponse(absl::UnavailableError("the server has as many connections as it takes"));
  const std::string text = fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
      "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
      response.body.size(),
      response.body);
  error_code ignored;
  socket.non_blocking(true, ignored);
  socket.send(asio::buffer(text), 0, ignored);
}

absl::Status Listen(tcp::acceptor& acceptor, const std::string& host, uint16_t port) {
  error_code error;
  const asio::ip::address address = asio::ip::make_address(host, error);
  if (error) {
    return absl::InvalidArgumentError(fmt::format("host \"{}\" is not an IP address", host));
  }
  const tcp::endpoint endpoint(address, port);
  acceptor.open(endpoint.protocol(), error);
  if (!error) {
    acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  }
  if (!error) {
    acceptor.bind(endpoint, error);
  }
  if (!error) {
    acceptor.listen(tcp::acceptor::max_listen_connections, error);
  }
  if (error) {
    return absl::UnavailableError(
        fmt::format("cannot listen on {}:{}: {}", host, port, error.message()));
  }
  return absl::OkStatus();
}

}  // namespace

struct HttpServer::State {
  State(const HttpOptions& options, Handler handler) : shared(options, std::move(handler)) {}

  asio::awaitable<void> Accept() {
    for (;;) {
      auto [error, socket] =
          co_await acceptor.async_accept(asio::make_strand(io_context), kNoThrow);
      if (error == asio::error::operation_aborted || !acceptor.is_open()) {
        co_return;
      }
      if (error) {
        base::log::warn("accept failed: {}", error.message());
        asio::steady_timer pause(io_context, kAcceptPause);
        co_await pause.async_wait(kNoThrow);
        continue;
      }
      Welcome(std::move(socket));
    }
  }

  void Welcome(tcp::socket socket) {
    if (++shared.connection_count > shared.options.max_connections) {
      --shared.connection_count;
      return TurnAway(socket);
    }
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    const auto executor = socket.get_executor();
    asio::co_spawn(executor, ServeConnection(std::move(socket), shared), asio::detached);
  }

  HttpShared shared;
  asio::io_context io_context;
  asio::executor_work_guard<asio::io_context::executor_type> keep_running =
      asio::make_work_guard(io_context);
  tcp::acceptor acceptor{io_context};
  uint16_t port = 0;
  std::vector<std::jthread> threads;
};

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::Status HttpServer::CheckAddress(const HttpOptions& options) {
  asio::io_context io_context;
  tcp::acceptor acceptor(io_context);
  return Listen(acceptor, options.host, options.port);
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options,
                                                              Handler handler) {
  auto state = std::make_unique<State>(options, std::move(handler));
  ZP_RETURN_IF_ERROR(Listen(state->acceptor, options.host, options.port));
  state->port = state->acceptor.local_endpoint().port();
  asio::co_spawn(state->io_context, state->Accept(), asio::detached);
  for (int i = 0; i < options.thread_count; ++i) {
    state->threads.emplace_back([context = &state->io_context] {
      base::NameThisThread("http");
      context->run();
    });
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

uint16_t HttpServer::port() const { return state_->port; }

size_t HttpServer::Drain(std::chrono::milliseconds deadline) {
  state_->shared.is_draining = true;
  asio::post(state_->io_context, [state = state_.get()] {
    error_code ignored;
    state->acceptor.close(ignored);
  });
  const absl::MutexLock lock(&state_->shared.mutex);
  state_->shared.mutex.AwaitWithTimeout(
      absl::Condition(
          +[](size_t* count) { return *count == 0; }, &state_->shared.open_requests),
      absl::FromChrono(deadline));
  return state_->shared.open_requests;
}

HttpServer::~HttpServer() {
  state_->shared.stop_requests.request_stop();
  {
    // Answers refer to our executor, on threads that are not ours; they must all be gone first.
    const absl::MutexLock lock(&state_->shared.mutex);
    state_->shared.mutex.Await(absl::Condition(
        +[](size_t* count) { return *count == 0; }, &state_->shared.open_handlers));
  }
  state_->io_context.stop();
  state_->threads.clear();  // joins
}

}  // namespace zp::gateway
