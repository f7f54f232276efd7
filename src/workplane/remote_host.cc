#include "workplane/remote_host.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/logging.h"
#include "cluster/channel_security.h"
#include "cluster/membership.h"
#include "cluster/wire.h"
#include "fmt/format.h"
#include "grpcpp/create_channel.h"
#include "workplane/flight.h"
#include "workplane/signal.h"
#include "workplane/wire.h"
#include "workplane/work_stream.h"

namespace zp::workplane {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kMaxMessageBytes =
    static_cast<int>(kMaxAnswerBytes + kFullMessageBytes + kMessageSlackBytes);

// One channel a stream: a connection that has gone bad is never used again.
std::shared_ptr<grpc::Channel> Dial(const std::string& target,
                                    const std::shared_ptr<grpc::ChannelCredentials>& security) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // hosts of a cluster see each other
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return grpc::CreateCustomChannel(target, security, arguments);
}

class GrpcRemoteHost final : public RemoteHost {
 public:
  GrpcRemoteHost(RemoteHostOptions options, RemoteHostEvents events)
      : options_(std::move(options)),
        events_(std::move(events)),
        flights_(options_.max_unanswered_works, options_.max_unsent_bytes),
        thread_([this] { Run(); }) {
    ZP_CHECK(events_.on_up && events_.on_down && events_.on_report);
  }

  ~GrpcRemoteHost() override { Stop(); }

  void SetAddress(std::string address) override {
    {
      const std::lock_guard lock(mutex_);
      address_ = std::move(address);
    }
    signal_->Notify();
  }

  protocol::WorkSink& rank(int32_t rank) override {
    ZP_CHECK(rank >= 0 && rank < cluster::kMaxRankCount) << rank;
    const std::lock_guard lock(mutex_);
    while (rank >= static_cast<int32_t>(ranks_.size())) {
      ranks_.push_back(std::make_unique<Rank>(*this, static_cast<int32_t>(ranks_.size())));
    }
    return *ranks_[rank];
  }

  absl::Status status() const override { return flights_.status(); }

  void Stop() override {
    is_stopping_ = true;
    signal_->Notify();
    if (thread_.joinable()) {
      thread_.join();
    }
  }

 private:
  class Rank final : public protocol::WorkSink {
   public:
    Rank(GrpcRemoteHost& host, int32_t rank) : host_(host), rank_(rank) {}
    absl::Status Submit(protocol::Work work, std::stop_token cancel, Done done) override {
      return host_.Submit(rank_, work, std::move(cancel), std::move(done));
    }

   private:
    GrpcRemoteHost& host_;
    const int32_t rank_;
  };

  absl::Status Submit(int32_t rank,
                      const protocol::Work& work,
                      std::stop_token cancel,
                      protocol::WorkSink::Done done) {
    ZP_RETURN_IF_ERROR(flights_.status());  // before the trouble of writing it down
    ZP_RETURN_IF_ERROR(CheckWork(work));
    const auto flight = std::make_shared<Flight>();
    const uint64_t id = next_id_++;
    flight->deadline = work.deadline;
    flight->done = std::move(done);
    flight->shape = ShapeOf(work);
    flight->submit = std::make_unique<wire::Submit>();
    flight->submit->set_id(id);
    flight->submit->set_rank(static_cast<uint32_t>(rank));
    ToWire(work, *flight->submit->mutable_work());
    flight->bytes = flight->submit->ByteSizeLong();
    if (flight->bytes > kMaxSubmitBytes) {
      return absl::InvalidArgumentError(
          fmt::format("the work has {} bytes, the limit is {}", flight->bytes, kMaxSubmitBytes));
    }
    if (cancel.stop_possible()) {
      flight->on_cancel.emplace(std::move(cancel), [this, id, flight = flight.get()] {
        flight->is_cancelled = true;
        if (flights_.Cancel(id)) {
          signal_->Notify();
        }
      });
    }
    ZP_RETURN_IF_ERROR(flights_.Add(flight));
    signal_->Notify();
    return absl::OkStatus();
  }

  void Run() {
    milliseconds pause = options_.first_pause;
    std::string last_complaint;
    while (!is_stopping_) {
      const std::string address = this->address();
      if (address.empty()) {
        signal_->WaitUntil(Clock::now() + std::chrono::hours(1));
        continue;
      }
      bool was_up = false;
      const absl::Status status = Converse(address, was_up);
      Fail(status);
      const std::string complaint = base::MessageOf(status);
      if (!is_stopping_ && std::exchange(last_complaint, complaint) != complaint) {
        base::log::warn("work plane: host {} at {}: {}", options_.host, address, complaint);
      }
      pause = was_up ? options_.first_pause : std::min(2 * pause, options_.longest_pause);
      Pause(address, pause);
    }
    Fail(absl::UnavailableError("this process is ending"));
  }

  std::string address() const {
    const std::lock_guard lock(mutex_);
    return address_;
  }

  // Less if there is another address, or none.
  void Pause(const std::string& failed_address, milliseconds pause) {
    const Clock::time_point until = Clock::now() + pause;
    while (!is_stopping_ && Clock::now() < until && address() == failed_address) {
      signal_->WaitUntil(until);
    }
  }

  // As long as the stream holds; then why it does not any more.
  absl::Status Converse(const std::string& address, bool& was_up) {
    ZP_ASSIGN_OR_RETURN(
        const auto security,
        cluster::ChannelSecurity(
            address, options_.tls_root_certificates_file, options_.allow_plaintext));
    WorkStream stream(Dial(address, security), options_.join_token, signal_);
    absl::Status status = ExchangeMessages(address, stream);
    const bool was_broken = stream.is_broken();
    stream.End();
    while (!stream.has_ended()) {
      signal_->WaitUntil(Clock::now() + std::chrono::hours(1));
    }
    if (was_broken && !stream.status().ok()) {
      status = absl::UnavailableError(stream.status().error_message() + HowSpokenTo(stream));
    }
    was_up = rank_count_ > 0;
    return status;
  }

  // What gRPC says where one side alone speaks TLS is "Socket closed".
  std::string HowSpokenTo(const WorkStream& stream) const {
    if (rank_count_ > 0 || stream.status().error_code() != grpc::StatusCode::UNAVAILABLE) {
      return "";
    }
    return options_.tls_root_certificates_file.empty() ? " (it was spoken to without TLS)"
                                                       : " (it was spoken to with TLS)";
  }

  // Until the stream breaks, or is to be broken for the reason that is returned.
  absl::Status ExchangeMessages(const std::string& address, WorkStream& stream) {
    rank_count_ = 0;
    wire::FromGateway outgoing;
    outgoing.mutable_hello()->set_model_fingerprint(options_.model_fingerprint);
    wire::FromWorker incoming;
    Clock::time_point looked = Clock::now();
    Clock::time_point heard = looked;
    Clock::time_point next_ping = looked + options_.ping_interval;
    while (true) {
      while (stream.TakeMessage(incoming)) {
        heard = Clock::now();
        ZP_RETURN_IF_ERROR(Handle(incoming));
      }
      ZP_RETURN_IF_ERROR(CheckGoingOn(address, stream));
      const Clock::time_point now = Clock::now();
      if (now - std::exchange(looked, now) > options_.lost_after / 2) {
        heard = now;  // it was this process that stood still
      }
      if (now - heard > options_.lost_after) {
        return absl::UnavailableError(
            fmt::format("nothing was heard for {} ms", options_.lost_after.count()));
      }
      if (stream.can_write() && FillMessage(outgoing, now, next_ping)) {
        stream.Write(outgoing);
        outgoing.Clear();
        continue;  // there may be more
      }
      signal_->WaitUntil(std::min(next_ping, heard + options_.lost_after + milliseconds(1)));
    }
  }

  absl::Status CheckGoingOn(const std::string& connected_address, const WorkStream& stream) const {
    if (is_stopping_) {
      return absl::UnavailableError("this process is ending");
    }
    const std::string wanted = address();
    if (!wanted.empty() && wanted != connected_address) {
      return absl::UnavailableError(fmt::format("the worker is at {} now", wanted));
    }
    return stream.is_broken() ? absl::UnavailableError("the stream broke") : absl::OkStatus();
  }

  // False: there is nothing to send. The hello is in the first message already.
  bool FillMessage(wire::FromGateway& message,
                   Clock::time_point now,
                   Clock::time_point& next_ping) {
    std::vector<Flights::Landed> landed;
    flights_.FillMessage(message, now, landed);
    for (Flights::Landed& flight : landed) {
      flight.flight->done(std::move(flight.result));
    }
    if (now >= next_ping) {
      message.set_ping(static_cast<uint64_t>(now.time_since_epoch().count()));
      next_ping = now + options_.ping_interval;
    }
    return message.has_hello() || message.has_ping() || message.submits_size() > 0 ||
           message.cancels_size() > 0;
  }

  // Errors: the worker does not keep to the protocol.
  absl::Status Handle(wire::FromWorker& message) {
    if (message.has_welcome() == (rank_count_ > 0)) {
      return absl::UnavailableError("the worker begins without a welcome, or says it twice");
    }
    if (message.has_welcome()) {
      ZP_RETURN_IF_ERROR(ComeUp(message.welcome()));
    }
    for (const wire::Report& report : message.reports()) {
      absl::StatusOr<protocol::RankReport> read = FromWire(report, rank_count_);
      const absl::Status status =
          read.ok() ? held_blocks_[report.rank()].Count(read->cache) : read.status();
      if (!status.ok()) {
        return absl::UnavailableError(
            fmt::format("the worker's report: {}", base::MessageOf(status)));
      }
      events_.on_report(options_.host, static_cast<int32_t>(report.rank()), *read);
    }
    for (const wire::Answer& answer : message.answers()) {
      Land(answer);
    }
    if (message.is_draining()) {
      GoDown(absl::UnavailableError("the worker is ending"));
    }
    return absl::OkStatus();
  }

  absl::Status ComeUp(const wire::Welcome& welcome) {
    if (welcome.rank_count() < 1 || welcome.rank_count() > cluster::kMaxRankCount) {
      return absl::UnavailableError(
          fmt::format("the worker says that it has {} ranks; 1 to {} can be",
                      welcome.rank_count(),
                      cluster::kMaxRankCount));
    }
    const uint64_t max_held_blocks =
        welcome.has_max_held_blocks() ? welcome.max_held_blocks() : kMaxHeldBlocks;
    if (max_held_blocks > kMaxHeldBlocks) {
      return absl::UnavailableError(
          fmt::format("the worker's welcome: max_held_blocks is {}, the limit is {}",
                      max_held_blocks,
                      kMaxHeldBlocks));
    }
    rank_count_ = static_cast<int32_t>(welcome.rank_count());
    held_blocks_.assign(rank_count_, HeldBlockCount(max_held_blocks));
    flights_.Open(rank_count_);
    is_up_ = true;
    events_.on_up(options_.host, rank_count_);
    return absl::OkStatus();
  }

  void Land(const wire::Answer& answer) {
    const std::shared_ptr<Flight> flight = flights_.Land(answer.id());
    if (flight == nullptr) {
      base::log::warn("work plane: host {} answers what was not asked", options_.host);
      return;
    }
    if (answer.has_error()) {
      flight->done(FromWire(answer.error()));
      return;
    }
    absl::StatusOr<protocol::WorkResult> result = FromWire(answer.result());
    if (result.ok() && ShapeOf(*result) != flight->shape) {
      result = absl::InternalError("it has not the rows that were asked for");
    }
    if (!result.ok()) {
      result = absl::InternalError(fmt::format(
          "the answer of host {}: {}", options_.host, base::MessageOf(result.status())));
    }
    flight->done(std::move(result));
  }

  void GoDown(const absl::Status& why) {
    flights_.Close(why);
    if (std::exchange(is_up_, false)) {
      events_.on_down(options_.host, why);
    }
  }

  void Fail(const absl::Status& why) {
    GoDown(why);
    for (const std::shared_ptr<Flight>& flight : flights_.LandAll()) {
      flight->done(absl::UnavailableError(
          fmt::format("host {} is lost: {}", options_.host, base::MessageOf(why))));
    }
  }

  const RemoteHostOptions options_;
  const RemoteHostEvents events_;
  const std::shared_ptr<Signal> signal_ = std::make_shared<Signal>();  // of the thread
  Flights flights_;
  std::atomic<uint64_t> next_id_ = 1;
  std::atomic<bool> is_stopping_ = false;

  mutable std::mutex mutex_;  // of the next two
  std::string address_;
  std::vector<std::unique_ptr<Rank>> ranks_;

  // The thread's.
  int32_t rank_count_ = 0;                   // of the stream; 0: not welcomed
  std::vector<HeldBlockCount> held_blocks_;  // [rank]
  bool is_up_ = false;

  std::thread thread_;  // last: everything it uses is there before it starts
};

}  // namespace

std::unique_ptr<RemoteHost> RemoteHost::Create(RemoteHostOptions options, RemoteHostEvents events) {
  return std::make_unique<GrpcRemoteHost>(std::move(options), std::move(events));
}

}  // namespace zp::workplane
