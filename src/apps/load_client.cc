#include "apps/load_client.h"

#include <array>
#include <charconv>
#include <exception>
#include <string_view>
#include <utility>

#include "boost/asio/awaitable.hpp"
#include "boost/asio/buffer.hpp"
#include "boost/asio/co_spawn.hpp"
#include "boost/asio/connect.hpp"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/this_coro.hpp"
#include "boost/asio/use_awaitable.hpp"
#include "boost/asio/write.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/http.hpp"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

using Clock = std::chrono::steady_clock;

constexpr double kAnswerTimeoutSeconds = 300;
// The server closes what is idle for longer, as it may at any time.
constexpr double kMaxIdleSeconds = 30;
constexpr uint64_t kMaxAnswerBytes = 64 << 20;

std::optional<double> ParseSeconds(std::string_view text) {
  double seconds = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  return problem == std::errc() && end == text.data() + text.size() ? std::optional(seconds)
                                                                    : std::nullopt;
}

}  // namespace

class LoadClient::State {
 public:
  State(const ServerAddress& address, const std::string& path)
      : address_(address),
        head_(fmt::format("POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n",
                          path,
                          address.host)) {
    asio::ip::tcp::resolver resolver(context_);
    endpoints_ = resolver.resolve(address.host, std::to_string(address.port));
  }

  double Now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  absl::StatusOr<std::vector<TimedAnswer>> SendAt(const std::vector<TimedRequest>& requests) {
    std::vector<TimedAnswer> answers(requests.size());
    Spawn(SendEach(requests, answers));
    ZP_RETURN_IF_ERROR(RunAll(requests.empty() ? 0 : requests.back().at_s));
    return answers;
  }

  absl::StatusOr<std::vector<TimedAnswer>> KeepInFlight(const std::vector<std::string>& bodies,
                                                        int in_flight,
                                                        double seconds) {
    std::vector<TimedAnswer> answers;
    const double end_s = Now() + seconds;
    for (int i = 0; i < in_flight; ++i) {
      Spawn(AskUntil(end_s, bodies, answers));
    }
    ZP_RETURN_IF_ERROR(RunAll(seconds));
    return answers;
  }

 private:
  struct Connection {
    explicit Connection(asio::io_context& context) : socket(context) {}
    asio::ip::tcp::socket socket;
    beast::flat_buffer buffer;
    double used_s = 0;
  };

  void Spawn(asio::awaitable<void> task) {
    asio::co_spawn(context_, std::move(task), [this](const std::exception_ptr& error) {
      error_ = error_ == nullptr ? error : error_;
    });
  }

  // One clock for all that was asked in `seconds`: a timer a request would cost as much as the
  // request, on the cores of the server.
  absl::Status RunAll(double seconds) {
    const std::chrono::duration<double> most(seconds + kAnswerTimeoutSeconds);
    try {
      context_.restart();
      context_.run_for(std::chrono::duration_cast<Clock::duration>(most));
      if (!context_.stopped()) {
        return absl::UnavailableError(fmt::format("http://{}:{}: no answer in {} s",
                                                  address_.host,
                                                  address_.port,
                                                  kAnswerTimeoutSeconds));
      }
      if (error_ != nullptr) {
        std::rethrow_exception(std::exchange(error_, nullptr));
      }
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          fmt::format("http://{}:{}: {}", address_.host, address_.port, error.what()));
    }
    return absl::OkStatus();
  }

  asio::awaitable<void> SendEach(const std::vector<TimedRequest>& requests,
                                 std::vector<TimedAnswer>& answers) {
    const double begin_s = Now();
    asio::steady_timer timer(context_);
    for (size_t i = 0; i < requests.size(); ++i) {
      answers[i].due_s = begin_s + requests[i].at_s;
      timer.expires_at(start_ + std::chrono::duration_cast<Clock::duration>(
                                    std::chrono::duration<double>(answers[i].due_s)));
      co_await timer.async_wait(asio::use_awaitable);
      Spawn(Ask(*requests[i].body, answers[i]));
    }
  }

  asio::awaitable<void> AskUntil(double end_s,
                                 const std::vector<std::string>& bodies,
                                 std::vector<TimedAnswer>& answers) {
    while (Now() < end_s) {
      TimedAnswer answer{.due_s = Now()};
      co_await Ask(bodies[next_body_++ % bodies.size()], answer);
      answers.push_back(std::move(answer));
    }
  }

  asio::awaitable<void> Ask(const std::string& body, TimedAnswer& answer) {
    std::unique_ptr<Connection> connection = co_await Connect();
    const std::string head = fmt::format("{}Content-Length: {}\r\n\r\n", head_, body.size());
    const std::array<asio::const_buffer, 2> request = {asio::buffer(head), asio::buffer(body)};
    answer.sent_s = Now();
    co_await asio::async_write(connection->socket, request, asio::use_awaitable);
    co_await connection->socket.async_wait(asio::ip::tcp::socket::wait_read, asio::use_awaitable);
    http::response_parser<http::string_body> parser;
    parser.body_limit(kMaxAnswerBytes);
    co_await http::async_read(connection->socket, connection->buffer, parser, asio::use_awaitable);
    answer.done_s = Now();
    answer.status = static_cast<int>(parser.get().result_int());
    const beast::string_view retry = parser.get()[http::field::retry_after];
    answer.retry_s = ParseSeconds({retry.data(), retry.size()});
    if (answer.status != 200) {
      answer.body = std::move(parser.get().body());
    }
    if (parser.get().keep_alive()) {
      connection->used_s = answer.done_s;
      idle_.push_back(std::move(connection));
    }
  }

  asio::awaitable<std::unique_ptr<Connection>> Connect() {
    while (!idle_.empty()) {
      std::unique_ptr<Connection> connection = std::move(idle_.back());
      idle_.pop_back();
      if (Now() - connection->used_s < kMaxIdleSeconds) {
        co_return connection;
      }
    }
    auto connection = std::make_unique<Connection>(context_);
    co_await asio::async_connect(connection->socket, endpoints_, asio::use_awaitable);
    connection->socket.set_option(asio::ip::tcp::no_delay(true));
    co_return connection;
  }

  const ServerAddress address_;
  const std::string head_;  // of every request, but for its length
  const Clock::time_point start_ = Clock::now();
  size_t next_body_ = 0;
  std::exception_ptr error_;
  asio::io_context context_{1};
  asio::ip::tcp::resolver::results_type endpoints_;
  std::vector<std::unique_ptr<Connection>> idle_;  // the last that was used comes first
};

absl::StatusOr<std::unique_ptr<LoadClient>> LoadClient::Create(const ServerAddress& address,
                                                               const std::string& path) {
  try {
    return std::unique_ptr<LoadClient>(new LoadClient(std::make_unique<State>(address, path)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(fmt::format("{}: {}", address.host, error.what()));
  }
}

LoadClient::LoadClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
LoadClient::~LoadClient() = default;

double LoadClient::Now() const { return state_->Now(); }

absl::StatusOr<std::vector<TimedAnswer>> LoadClient::SendAt(
    const std::vector<TimedRequest>& requests) {
  return state_->SendAt(requests);
}

absl::StatusOr<std::vector<TimedAnswer>> LoadClient::KeepInFlight(
    const std::vector<std::string>& bodies, int in_flight, double seconds) {
  return state_->KeepInFlight(bodies, in_flight, seconds);
}

}  // namespace zp::apps
