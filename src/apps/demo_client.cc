#include "apps/demo_client.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <exception>
#include <string_view>

#include "boost/asio/awaitable.hpp"
#include "boost/asio/co_spawn.hpp"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/this_coro.hpp"
#include "boost/asio/use_awaitable.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/core/tcp_stream.hpp"
#include "boost/beast/http.hpp"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr std::chrono::seconds kAnswerTimeout{120};
constexpr uint64_t kMaxAnswerBytes = 64 << 20;

using HttpRequest = http::request<http::string_body>;

HttpRequest MakeRequest(http::verb verb,
                        const ServerAddress& address,
                        const std::string& path,
                        const std::string& body) {
  HttpRequest request(verb, path, /*version=*/11);
  request.set(http::field::host, address.host);
  request.set(http::field::content_type, "application/json");
  request.body() = body;
  request.prepare_payload();
  return request;
}

// Sends requests from a common list over several connections at once.
class Exchange {
 public:
  Exchange(const ServerAddress& address, const std::vector<HttpRequest>& requests)
      : address_(address), requests_(requests), answers_(requests.size()) {}

  // REQUIRES: called once.
  absl::StatusOr<std::vector<HttpAnswer>> Run(int connection_count) {
    try {
      asio::ip::tcp::resolver resolver(context_);
      endpoints_ = resolver.resolve(address_.host, std::to_string(address_.port));
      for (int i = 0; i < connection_count; ++i) {
        asio::co_spawn(context_, RunConnection(), [this](const std::exception_ptr& error) {
          error_ = error_ == nullptr ? error : error_;
        });
      }
      context_.run();
      if (error_ != nullptr) {
        std::rethrow_exception(error_);
      }
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          fmt::format("http://{}:{}: {}", address_.host, address_.port, error.what()));
    }
    return std::move(answers_);
  }

 private:
  asio::awaitable<void> RunConnection() {
    beast::tcp_stream stream(co_await asio::this_coro::executor);
    stream.expires_after(kAnswerTimeout);
    co_await stream.async_connect(endpoints_, asio::use_awaitable);
    beast::flat_buffer buffer;
    while (next_request_ < requests_.size()) {
      const size_t index = next_request_++;
      stream.expires_after(kAnswerTimeout);
      co_await http::async_write(stream, requests_[index], asio::use_awaitable);
      http::response_parser<http::string_body> parser;
      parser.body_limit(kMaxAnswerBytes);
      co_await http::async_read(stream, buffer, parser, asio::use_awaitable);
      answers_[index] = {.status = static_cast<int>(parser.get().result_int()),
                         .body = std::move(parser.get().body())};
    }
  }

  const ServerAddress& address_;
  const std::vector<HttpRequest>& requests_;
  std::vector<HttpAnswer> answers_;
  size_t next_request_ = 0;
  std::exception_ptr error_;
  asio::io_context context_{1};
  asio::ip::tcp::resolver::results_type endpoints_;
};

}  // namespace

absl::StatusOr<ServerAddress> ParseUrl(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  const absl::Status error =
      absl::InvalidArgumentError(fmt::format("\"{}\" is not of the form http://HOST:PORT", url));
  std::string_view rest = url;
  if (!rest.starts_with(kScheme)) {
    return error;
  }
  rest.remove_prefix(kScheme.size());
  const size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos || colon == 0) {
    return error;
  }
  ServerAddress address{.host = std::string(rest.substr(0, colon))};
  const std::string_view port = rest.substr(colon + 1);
  const auto [end, problem] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (problem != std::errc() || end != port.data() + port.size()) {
    return error;
  }
  return address;
}

absl::StatusOr<HttpAnswer> Get(const ServerAddress& address, const std::string& path) {
  const std::vector<HttpRequest> requests = {MakeRequest(http::verb::get, address, path, "")};
  ZP_ASSIGN_OR_RETURN(std::vector<HttpAnswer> answers, Exchange(address, requests).Run(1));
  return std::move(answers.front());
}

absl::StatusOr<std::vector<HttpAnswer>> PostAll(const ServerAddress& address,
                                                const std::string& path,
                                                const std::vector<std::string>& bodies,
                                                int connection_count) {
  std::vector<HttpRequest> requests;
  requests.reserve(bodies.size());
  for (const std::string& body : bodies) {
    requests.push_back(MakeRequest(http::verb::post, address, path, body));
  }
  const int useful_connections = std::min(connection_count, static_cast<int>(bodies.size()));
  return Exchange(address, requests).Run(useful_connections);
}

}  // namespace zp::apps
