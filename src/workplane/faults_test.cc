// What either side does when the other dies, hangs, does not read or talks nonsense.

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "workplane/loopback_testing.h"
#include "workplane/wire.h"
#include "workplane/work_plane.grpc.pb.h"

namespace zp::workplane {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

protocol::Work WorkOf(int32_t token) {
  protocol::Work work;
  work.request_id = "r";
  work.sequences.emplace_back().tokens = {token};
  work.sequences[0].pooling = protocol::Pooling::kMean;
  return work;
}

// A gateway by hand, which can misbehave in any way.
class BareGateway {
 public:
  explicit BareGateway(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = wire::WorkPlane::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    context_.AddMetadata(kTokenKey, kToken);
    stream_ = stub_->Serve(&context_);
  }
  ~BareGateway() {
    if (!has_ended_) {
      context_.TryCancel();
      stream_->Finish().ok();
    }
  }

  bool SayHello() {
    wire::FromGateway message;
    message.mutable_hello()->set_model_fingerprint(kModel);
    return stream_->Write(message);
  }
  bool Submit(uint64_t id, const protocol::Work& work, uint32_t rank = 0) {
    wire::FromGateway message;
    wire::Submit& submit = *message.add_submits();
    submit.set_id(id);
    submit.set_rank(rank);
    ToWire(work, *submit.mutable_work());
    return stream_->Write(message);
  }
  bool Write(const wire::FromGateway& message) { return stream_->Write(message); }
  bool Read(wire::FromWorker& message) { return stream_->Read(&message); }
  // Reads on until there is one answer.
  wire::Answer ReadAnswer() {
    wire::FromWorker message;
    while (message.answers_size() == 0 && Read(message)) {
    }
    return message.answers_size() > 0 ? message.answers(0) : wire::Answer();
  }
  // Of the stream, whatever comes before.
  grpc::Status End() {
    wire::FromWorker message;
    while (Read(message)) {
    }
    has_ended_ = true;
    return stream_->Finish();
  }

 private:
  std::unique_ptr<wire::WorkPlane::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<wire::FromGateway, wire::FromWorker>> stream_;
  bool has_ended_ = false;
};

// A worker by hand: says what it is told to, then nothing, and reads nothing.
class BareWorker final : public wire::WorkPlane::Service {
 public:
  explicit BareWorker(std::vector<wire::FromWorker> messages) : messages_(std::move(messages)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = fmt::format("127.0.0.1:{}", port);
  }
  ~BareWorker() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status Serve(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<wire::FromWorker, wire::FromGateway>* stream) override {
    for (const wire::FromWorker& message : messages_) {
      stream->Write(message);
    }
    while (!context->IsCancelled()) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    return grpc::Status::CANCELLED;
  }
  const std::string& address() const { return address_; }

 private:
  const std::vector<wire::FromWorker> messages_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

wire::FromWorker Welcome(uint32_t rank_count, uint64_t max_held_blocks = 0) {
  wire::FromWorker message;
  message.mutable_welcome()->set_rank_count(rank_count);
  message.mutable_welcome()->set_max_held_blocks(max_held_blocks);
  return message;
}

TEST(Faults, AKilledWorkersWorksAreUnavailableAndItComesBack) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  std::vector<Outcome> outcomes(100);
  for (Outcome& outcome : outcomes) {
    ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  }
  worker.rank().WaitForBrought(100);
  worker.Kill();
  gateway.WaitDown();
  for (Outcome& outcome : outcomes) {
    EXPECT_TRUE(absl::IsUnavailable(outcome.WaitForStatus()));
  }
  worker.rank().WaitForCancelled(100);
  worker.rank().Release();
  worker.Start();
  gateway.WaitUp(2);
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  EXPECT_TRUE(outcome.Wait().ok());
}

TEST(Faults, ALostGatewaysWorksAreCancelled) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  Outcome outcome;
  {
    Gateway gateway;
    gateway.Connect(worker.address());
    gateway.WaitUp();
    ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
    worker.rank().WaitForBrought(1);
  }
  EXPECT_TRUE(absl::IsUnavailable(outcome.WaitForStatus()));
  worker.rank().WaitForCancelled(1);
}

TEST(Faults, AGatewayThatFallsSilentIsLost) {
  Worker worker;
  worker.options.gateway_timeout = milliseconds(100);
  worker.rank().Hold();
  worker.Start();
  BareGateway gateway(worker.address());
  ASSERT_TRUE(gateway.SayHello());
  ASSERT_TRUE(gateway.Submit(1, WorkOf(1)));
  worker.rank().WaitForCancelled(1);
  EXPECT_FALSE(gateway.End().ok());
}

// The stream stands and the connection answers pings of its own; but nobody is at work.
TEST(Faults, AWorkerThatDoesNothingIsLostInBoundedTime) {
  BareWorker worker({Welcome(1)});
  Gateway gateway;
  gateway.options.lost_after = milliseconds(200);
  gateway.Connect(worker.address());
  gateway.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  EXPECT_THAT(gateway.WaitDown(), HasSubstr("nothing was heard for 200 ms"));
  EXPECT_TRUE(absl::IsUnavailable(outcome.WaitForStatus()));
}

class HangingRank final : public protocol::WorkSink {
 public:
  absl::Status Submit(protocol::Work, std::stop_token, Done done) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_released_; });
    done(absl::AbortedError("it hung"));
    return absl::OkStatus();
  }
  void Release() {
    const std::lock_guard lock(mutex_);
    is_released_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_released_ = false;
};

TEST(Faults, AWorkerWhoseRankHangsIsLostAndComesBackWhenItGoesOn) {
  HangingRank rank;
  ReportBoard board(1);
  const auto server =
      WorkServer::Start({.join_token = kToken, .model_fingerprint = kModel}, {&rank}, board);
  ASSERT_TRUE(server.ok());
  Gateway gateway;
  gateway.options.lost_after = milliseconds(200);
  gateway.Connect(cluster::TargetOf("127.0.0.1", (*server)->port()));
  gateway.WaitUp();
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  gateway.WaitDown();
  EXPECT_TRUE(absl::IsUnavailable(outcome.WaitForStatus()));
  rank.Release();
  gateway.WaitUp(2);
  Outcome second;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, second.Done()).ok());
  EXPECT_TRUE(absl::IsAborted(second.WaitForStatus()));
}

// Answers of a quarter of a MiB that nobody reads: what the worker keeps is bounded by its options,
// what lies in the connection by HTTP/2, and who brings on regardless has to go.
TEST(Faults, AGatewayThatDoesNotReadCostsBoundedMemory) {
  constexpr size_t kAnswerFloats = size_t{64} << 10;
  constexpr uint64_t kWorks = 5000;
  Worker worker(1, [](const protocol::Work& work) {
    protocol::WorkResult result = AnswerTo(work);
    result.sequences[0].pooled.resize(kAnswerFloats);
    return result;
  });
  worker.options.max_unanswered_works = 100;
  worker.options.gateway_timeout = std::chrono::minutes(5);
  worker.Start();
  BareGateway gateway(worker.address());
  ASSERT_TRUE(gateway.SayHello());
  for (uint64_t id = 1; id <= kWorks && gateway.Submit(id, WorkOf(1)); ++id) {
  }
  const grpc::Status status = gateway.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_LT(worker.rank().brought_count(), 1000u);
}

TEST(Faults, AStreamThatKeepsNoProtocolEnds) {
  Worker worker;
  worker.rank().Hold();
  worker.Start();
  const auto code_after = [&](const std::vector<wire::FromGateway>& messages) {
    BareGateway gateway(worker.address());
    for (const wire::FromGateway& message : messages) {
      gateway.Write(message);
    }
    return gateway.End().error_code();
  };
  wire::FromGateway hello;
  hello.mutable_hello()->set_model_fingerprint(kModel);
  wire::FromGateway submit;
  ToWire(WorkOf(1), *submit.add_submits()->mutable_work());
  const grpc::StatusCode refused = grpc::StatusCode::INVALID_ARGUMENT;
  EXPECT_EQ(code_after({submit}), refused) << "no hello";
  EXPECT_EQ(code_after({hello, hello}), refused) << "two of them";
  EXPECT_EQ(code_after({hello, submit, submit}), refused) << "one id twice";
  BareGateway stranger(worker.address());
  wire::FromGateway other = hello;
  other.mutable_hello()->set_model_fingerprint("mixtral");
  ASSERT_TRUE(stranger.Write(other));
  EXPECT_EQ(stranger.End().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST(Faults, AWorkThatCannotBeIsRefusedAndHurtsNoOther) {
  Worker worker;
  worker.Start();
  BareGateway gateway(worker.address());
  ASSERT_TRUE(gateway.SayHello());
  ASSERT_TRUE(gateway.Submit(1, WorkOf(1), /*rank=*/1));
  wire::Answer answer = gateway.ReadAnswer();
  EXPECT_EQ(answer.id(), 1u);
  EXPECT_THAT(answer.error().message(), HasSubstr("rank is 1; the worker has 1"));
  protocol::Work spoilt = WorkOf(1);
  spoilt.sequences[0].rows.resize(1);
  spoilt.sequences[0].rows[0].position = 5;
  ASSERT_TRUE(gateway.Submit(2, spoilt));
  answer = gateway.ReadAnswer();
  EXPECT_EQ(answer.id(), 2u);
  EXPECT_THAT(answer.error().message(), HasSubstr("row position is 5"));
  ASSERT_TRUE(gateway.Submit(3, WorkOf(1)));
  answer = gateway.ReadAnswer();
  EXPECT_EQ(answer.id(), 3u);
  EXPECT_TRUE(answer.has_result());
}

TEST(Faults, AWorkerThatTalksNonsenseIsLost) {
  wire::FromWorker answer_alone;
  answer_alone.add_answers();
  wire::FromWorker report;
  report.add_reports()->set_rank(9);
  wire::FromWorker two_blocks;
  ToWire(0, ReportOf(1, {}, {Block(1), Block(2)}), *two_blocks.add_reports());
  two_blocks.mutable_reports(0)->set_is_cleared(true);  // as the first of a rank is
  wire::FromWorker two_more;
  ToWire(0, ReportOf(1, {}, {Block(3), Block(4)}), *two_more.add_reports());
  const std::vector<std::pair<std::vector<wire::FromWorker>, std::string>> cases = {
      {{Welcome(1, kMaxHeldBlocks + 1)}, "max_held_blocks is 33554433, the limit is 33554432"},
      {{Welcome(1, 3), two_blocks, two_more}, "held blocks is 4, the limit is 3"},
      {{Welcome(0)}, "0 ranks"},
      {{Welcome(5'000'000)}, "5000000 ranks"},
      {{answer_alone}, "welcome"},
      {{Welcome(1), Welcome(1)}, "welcome"},
      {{Welcome(1), report}, "rank is 9"},
  };
  for (const auto& [messages, complaint] : cases) {
    BareWorker worker(messages);
    Gateway gateway;
    gateway.Connect(worker.address());
    gateway.WaitForComplaint(complaint);
  }
}

TEST(Faults, GarbageHurtsNobody) {
  Worker worker;
  worker.Start();
  Gateway gateway;
  gateway.Connect(worker.address());
  gateway.WaitUp();
  Random random(1);
  for (int connection = 0; connection < 20; ++connection) {
    const int number = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(worker.options.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(number, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    std::string garbage = connection % 2 == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "";
    garbage += RandomBytes(random, 4096);
    send(number, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    close(number);
  }
  Outcome outcome;
  ASSERT_TRUE(gateway.rank().Submit(WorkOf(1), {}, outcome.Done()).ok());
  EXPECT_TRUE(outcome.Wait().ok());
}

// Many threads bring works and leave some while the worker is killed and started again and again.
class Soak {
 public:
  explicit Soak(uint64_t seed) : random_(seed) {}

  void Run() {
    worker_.Start();
    gateway_.Connect(worker_.address());
    gateway_.WaitUp();
    std::vector<std::thread> clients;
    for (size_t client = 0; client < kClients; ++client) {
      clients.emplace_back([this, client, seed = random_()] { Bring(client, Random(seed)); });
    }
    for (size_t kill = 1; kill <= 4; ++kill) {
      WaitForRightAnswer();  // or nothing would be killed that works
      std::this_thread::sleep_for(milliseconds(Draw(random_, 0, 20)));
      worker_.Kill();
      gateway_.WaitDown(kill);
      worker_.Start();
      gateway_.WaitUp(kill + 1);
    }
    WaitForRightAnswer();
    for (std::thread& client : clients) {
      client.join();
    }
    gateway_.Stop();  // answers what is left
    for (size_t i = 0; i < answer_counts_.size(); ++i) {
      EXPECT_EQ(answer_counts_[i], was_taken_[i] ? 1 : 0) << "work " << i;
    }
  }

 private:
  static constexpr size_t kClients = 2;
  static constexpr size_t kWorks = 1500;  // of each client

  // One more than there are; not if the clients have brought all that they had.
  void WaitForRightAnswer() {
    for (const int before = right_count_; right_count_ == before && busy_clients_ > 0;) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    EXPECT_GT(right_count_, 0);
  }

  void Bring(size_t client, Random random) {
    for (size_t i = client * kWorks; i < (client + 1) * kWorks; ++i) {
      std::stop_source leaves;
      const auto token = static_cast<int32_t>(i);
      const absl::Status status =
          gateway_.rank(static_cast<int32_t>(random() % 2))
              .Submit(WorkOf(token),
                      leaves.get_token(),
                      [this, i](absl::StatusOr<protocol::WorkResult> result) {
                        ++answer_counts_[i];
                        Check(static_cast<int32_t>(i), result);
                      });
      was_taken_[i] = status.ok();
      EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
      if (!status.ok()) {
        std::this_thread::sleep_for(milliseconds(1));  // it will be back
      }
      if (random() % 4 == 0) {
        leaves.request_stop();
      }
      if (random() % 16 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(Draw(random, 0, 1000)));
      }
    }
    --busy_clients_;
  }

  void Check(int32_t token, const absl::StatusOr<protocol::WorkResult>& result) {
    if (result.ok()) {
      EXPECT_EQ(result->sequences[0].pooled[0], static_cast<float>(token));
      ++right_count_;
    } else {
      EXPECT_TRUE(absl::IsUnavailable(result.status()) || absl::IsCancelled(result.status()))
          << result.status();
    }
  }

  Random random_;
  Worker worker_{2};
  std::vector<std::atomic<int>> answer_counts_ = std::vector<std::atomic<int>>(kClients * kWorks);
  std::vector<std::atomic<bool>> was_taken_ = std::vector<std::atomic<bool>>(kClients * kWorks);
  std::atomic<int> right_count_ = 0;
  std::atomic<size_t> busy_clients_ = kClients;
  Gateway gateway_;
};

TEST(Faults, EveryWorkIsAnsweredOnceWhateverIsKilled) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(seed);
    Soak(seed).Run();
  }
}

}  // namespace
}  // namespace zp::workplane
