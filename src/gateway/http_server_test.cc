// The server over a loopback socket, with a plain blocking client.
#include "gateway/http_server.h"

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/strings/cord.h"
#include "boost/asio/connect.hpp"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/read.hpp"
#include "boost/asio/write.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/http.hpp"
#include "gateway/fake_model.h"

namespace zp::gateway {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using std::chrono::milliseconds;

constexpr char kQuestion[] = R"({"input":"x","labels":["A","B"]})";

std::string PostText(const std::string& path, const std::string& body) {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{}", path, body.size(), body);
}

class Client {
 public:
  explicit Client(uint16_t port) { socket_.connect({asio::ip::make_address("127.0.0.1"), port}); }

  // Errors are ignored: a server may close before it has read everything.
  void Send(const std::string& text) {
    boost::system::error_code ignored;
    asio::write(socket_, asio::buffer(text), ignored);
  }

  // Nothing when the server closed the connection.
  std::optional<http::response<http::string_body>> Receive(bool is_head = false) {
    http::response_parser<http::string_body> parser;
    parser.skip(is_head);
    boost::system::error_code error;
    http::read(socket_, buffer_, parser, error);
    if (error) {
      return std::nullopt;
    }
    return parser.release();
  }

  int StatusOf(const std::string& text) {
    Send(text);
    const auto response = Receive();
    return response.has_value() ? static_cast<int>(response->result_int()) : 0;
  }

  std::string ReceiveText(size_t byte_count) {
    std::string text(byte_count, '\0');
    boost::system::error_code ignored;
    text.resize(asio::read(socket_, asio::buffer(text), ignored));
    return text;
  }

  void Close() { socket_.close(); }

 private:
  asio::io_context io_context_;
  asio::ip::tcp::socket socket_{io_context_};
  boost::beast::flat_buffer buffer_;
};

class HttpServerTest : public testing::Test {
 protected:
  void Start(HttpOptions options = {}) {
    options.port = 0;
    absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(
        options,
        [this](Request request, std::stop_token cancel, std::function<void(Response)> done) {
          test_.service.Handle(std::move(request), std::move(cancel), std::move(done));
        });
    ASSERT_TRUE(server.ok()) << base::MessageOf(server.status());
    server_ = *std::move(server);
  }

  Client Connect() { return Client(server_->port()); }

  TestService test_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersManyRequestsOnOneConnection) {
  Start();
  Client client = Connect();
  for (int i = 0; i < 3; ++i) {
    client.Send(PostText("/v1/classify", kQuestion));
    const auto response = client.Receive();
    ASSERT_TRUE(response.has_value());
    EXPECT_EQ(response->result_int(), 200u) << response->body();
    EXPECT_EQ((*response)[http::field::content_type], "application/json");
    EXPECT_FALSE((*response)["X-Request-Id"].empty());
  }
}

TEST_F(HttpServerTest, AClientForWhomThereIsNoRoomKeepsItsConnection) {
  Start();
  Client client = Connect();
  absl::Status full = absl::ResourceExhaustedError("the queue is full");
  full.SetPayload(protocol::kRetrySecondsPayload, absl::Cord("7"));
  test_.sink.RefuseWith(full);
  for (const size_t body_bytes : {0, 1000, 1 << 20}) {
    client.Send(PostText("/v1/classify", std::string(body_bytes, ' ')));
    const auto refusal = client.Receive();
    ASSERT_TRUE(refusal.has_value()) << body_bytes;
    EXPECT_EQ(refusal->result_int(), 429u);
    EXPECT_EQ((*refusal)[http::field::retry_after], "7");
    EXPECT_TRUE(refusal->keep_alive());
  }
  test_.sink.RefuseWith(absl::OkStatus());
  EXPECT_EQ(client.StatusOf(PostText("/v1/classify", kQuestion)), 200);
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  Start();
  Client client = Connect();
  client.Send(PostText("/v1/classify", kQuestion) + "GET /version HTTP/1.1\r\nHost: t\r\n\r\n" +
              PostText("/nothing", ""));
  EXPECT_NE(client.Receive()->body().find("classify-"), std::string::npos);
  EXPECT_NE(client.Receive()->body().find("version"), std::string::npos);
  EXPECT_EQ(client.Receive()->result_int(), 404u);
}

TEST_F(HttpServerTest, ANextRequestSentEarlyIsNotLeaving) {
  Start();
  test_.sink.SetHeld(true);
  Client client = Connect();
  client.Send(PostText("/v1/classify", kQuestion));
  test_.sink.WaitForSubmits(1);
  client.Send("GET /version HTTP/1.1\r\nHost: t\r\n\r\n");
  std::this_thread::sleep_for(milliseconds(50));
  test_.sink.SetHeld(false);
  EXPECT_EQ(client.Receive()->result_int(), 200u);
  EXPECT_EQ(client.Receive()->result_int(), 200u);
}

TEST_F(HttpServerTest, HeadGivesTheHeaderAlone) {
  Start();
  Client client = Connect();
  client.Send("HEAD /version HTTP/1.1\r\nHost: t\r\n\r\n");
  const auto response = client.Receive(/*is_head=*/true);
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->result_int(), 200u);
  EXPECT_NE((*response)[http::field::content_length], "0");
  EXPECT_EQ(client.StatusOf("GET /version HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
}

TEST_F(HttpServerTest, QueryStringsAndWrongMethods) {
  Start();
  Client client = Connect();
  EXPECT_EQ(client.StatusOf("GET /version?x=1 HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
  client.Send("PUT /v1/classify HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n");
  const auto response = client.Receive();
  EXPECT_EQ(response->result_int(), 405u);
  EXPECT_EQ((*response)[http::field::allow], "POST");
}

TEST_F(HttpServerTest, AFullQueueSaysWhenToComeAgain) {
  Start();
  absl::Status full = absl::ResourceExhaustedError("the queue is full");
  full.SetPayload(protocol::kRetrySecondsPayload, absl::Cord("17"));
  test_.sink.RefuseWith(full);
  Client client = Connect();
  client.Send(PostText("/v1/classify", kQuestion));
  const auto response = client.Receive();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->result_int(), 429u);
  EXPECT_EQ((*response)[http::field::retry_after], "17");
}

TEST_F(HttpServerTest, BrokenJsonEndsTheRequestNotTheConnection) {
  Start();
  Client client = Connect();
  EXPECT_EQ(client.StatusOf(PostText("/v1/classify", "{\"input\":")), 400);
  EXPECT_EQ(client.StatusOf(PostText("/v1/classify", kQuestion)), 200);
}

TEST_F(HttpServerTest, WhatIsNoHttpIsRefused) {
  Start();
  EXPECT_EQ(Connect().StatusOf("\x16\x03\x01 hello\r\n\r\n"), 400);
  EXPECT_EQ(Connect().StatusOf("POST /v1/classify HTTP/1.1\r\nContent-Length: -5\r\n\r\n"), 400);
  EXPECT_EQ(Connect().StatusOf(
                "POST /v1/classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n"),
            400);
  EXPECT_EQ(Connect().StatusOf("POST /v1/classify HTTP/1.1\r\nTransfer-Encoding: "
                               "chunked\r\n\r\nffffffffffffffffff\r\nx\r\n"),
            400);
  EXPECT_EQ(Connect().StatusOf(PostText("/v1/classify", kQuestion)), 200);
}

TEST_F(HttpServerTest, ALargeBodyIsRefusedWithTheLimit) {
  Start({.max_body_bytes = 1000});
  Client client = Connect();
  client.Send(PostText("/v1/classify", std::string(100'000, 'x')));
  const auto response = client.Receive();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->result_int(), 413u);
  EXPECT_NE(response->body().find("1000 bytes"), std::string::npos) << response->body();
}

TEST_F(HttpServerTest, AChunkedBodyCountsToo) {
  Start({.max_body_bytes = 1000});
  std::string text = "POST /v1/classify HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 100; ++i) {
    text += "64\r\n" + std::string(100, 'x') + "\r\n";
  }
  EXPECT_EQ(Connect().StatusOf(text + "0\r\n\r\n"), 413);

  const std::string small = fmt::format(
      "POST /v1/classify HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: "
      "chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
      sizeof(kQuestion) - 1,
      kQuestion);
  EXPECT_EQ(Connect().StatusOf(small), 200);
}

TEST_F(HttpServerTest, AllBodiesTogetherAreBounded) {
  Start({.max_buffered_bytes = 10'000});
  EXPECT_EQ(Connect().StatusOf(PostText("/v1/classify", std::string(100'000, 'x'))), 503);
  EXPECT_EQ(Connect().StatusOf(PostText("/v1/classify", kQuestion)), 200);
}

TEST_F(HttpServerTest, LargeAndManyHeadersAreRefused) {
  Start();
  const std::string start = "GET /version HTTP/1.1\r\nHost: t\r\n";
  EXPECT_EQ(Connect().StatusOf(start + "X: " + std::string(1 << 20, 'x') + "\r\n\r\n"), 431);
  std::string many;
  for (int i = 0; i < 200; ++i) {
    many += fmt::format("X{}: 1\r\n", i);
  }
  EXPECT_EQ(Connect().StatusOf(start + many + "\r\n"), 431);
}

TEST_F(HttpServerTest, ClientsThatExpectContinueGetIt) {
  Start();
  Client client = Connect();
  client.Send(
      fmt::format("POST /v1/classify HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n"
                  "Content-Length: {}\r\n\r\n",
                  sizeof(kQuestion) - 1));
  constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  EXPECT_EQ(client.ReceiveText(kContinue.size()), kContinue);
  EXPECT_EQ(client.StatusOf(kQuestion), 200);
}

TEST_F(HttpServerTest, SlowClientsLoseTheirConnection) {
  Start({.idle_timeout = milliseconds(500),
         .header_timeout = milliseconds(100),
         .body_timeout = milliseconds(100)});
  const auto start = std::chrono::steady_clock::now();
  Client slow_header = Connect();
  slow_header.Send("GET /ver");
  EXPECT_FALSE(slow_header.Receive().has_value());
  Client slow_body = Connect();
  slow_body.Send("POST /v1/classify HTTP/1.1\r\nContent-Length: 10\r\n\r\n{");
  EXPECT_FALSE(slow_body.Receive().has_value());
  Client idle = Connect();
  EXPECT_FALSE(idle.Receive().has_value());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_EQ(Connect().StatusOf("GET /version HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
}

TEST_F(HttpServerTest, AClientThatLeavesCancelsItsWorkAndNothingElse) {
  Start();
  test_.sink.SetHeld(true);
  Client leaves = Connect();
  leaves.Send(PostText("/v1/classify", kQuestion));
  test_.sink.WaitForSubmits(1);
  Client stays = Connect();
  stays.Send(PostText("/v1/classify", kQuestion));
  test_.sink.WaitForSubmits(2);
  leaves.Close();
  EXPECT_TRUE(test_.sink.WaitForCancel());
  test_.sink.SetHeld(false);
  EXPECT_EQ(stays.Receive()->result_int(), 200u);
}

TEST_F(HttpServerTest, ConnectionsBeyondTheLimitAreTurnedAway) {
  Start({.max_connections = 2});
  const std::string get = "GET /version HTTP/1.1\r\nHost: t\r\n\r\n";
  auto first = std::make_unique<Client>(server_->port());
  EXPECT_EQ(first->StatusOf(get), 200);
  Client second = Connect();
  EXPECT_EQ(second.StatusOf(get), 200);
  const auto turned_away = Connect().Receive();
  EXPECT_EQ(turned_away->result_int(), 503u);
  EXPECT_NE(turned_away->body().find("\"error\""), std::string::npos) << turned_away->body();
  first->Close();
  for (int i = 0; i < 100; ++i) {
    if (Connect().StatusOf(get) == 200) {
      return;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
  ADD_FAILURE() << "a closed connection did not make room";
}

TEST_F(HttpServerTest, DrainLetsRequestsInFlightEnd) {
  Start();
  test_.sink.SetHeld(true);
  Client client = Connect();
  client.Send(PostText("/v1/classify", kQuestion));
  test_.sink.WaitForSubmits(1);
  EXPECT_EQ(server_->Drain(milliseconds(50)), 1u);  // still held
  EXPECT_THROW(Connect(), boost::system::system_error);
  test_.sink.SetHeld(false);
  EXPECT_EQ(server_->Drain(std::chrono::seconds(10)), 0u);
  const auto response = client.Receive();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->result_int(), 200u);
  EXPECT_FALSE(response->keep_alive());
}

TEST_F(HttpServerTest, EndingTheServerCancelsWhatIsStillOpen) {
  Start();
  test_.sink.SetHeld(true);
  Client client = Connect();
  client.Send(PostText("/v1/classify", kQuestion));
  test_.sink.WaitForSubmits(1);
  std::thread release([this] {
    EXPECT_TRUE(test_.sink.WaitForCancel());
    test_.sink.SetHeld(false);
  });
  server_.reset();
  release.join();
  EXPECT_FALSE(client.Receive().has_value());
}

TEST_F(HttpServerTest, ATakenPortIsAClearError) {
  Start();
  HttpOptions options;
  options.port = server_->port();
  const auto second = HttpServer::Start(options, {});
  ASSERT_FALSE(second.ok());
  EXPECT_NE(base::MessageOf(second.status()).find("cannot listen on 127.0.0.1"), std::string::npos);
  EXPECT_EQ(HttpServer::CheckAddress(options), second.status());
  options.port = 0;
  EXPECT_TRUE(HttpServer::CheckAddress(options).ok());
  options.host = "not an address";
  EXPECT_FALSE(HttpServer::Start(options, {}).ok());
}

}  // namespace
}  // namespace zp::gateway
