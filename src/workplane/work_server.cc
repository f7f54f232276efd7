#include "workplane/work_server.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/logging.h"
#include "cluster/grpc_server.h"
#include "cluster/secret.h"
#include "fmt/format.h"
#include "grpcpp/server.h"
#include "workplane/gateway_link.h"
#include "workplane/wire.h"

namespace zp::workplane {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxMessageBytes =
    static_cast<int>(kMaxSubmitBytes + kFullMessageBytes + kMessageSlackBytes);
constexpr size_t kServerMemoryBytes = size_t{1} << 30;

// A stream that ends before it has begun.
class Refusal final : public grpc::ServerBidiReactor<wire::FromGateway, wire::FromWorker> {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

class GrpcWorkServer final : public WorkServer, public wire::WorkPlane::CallbackService {
 public:
  GrpcWorkServer(WorkServerOptions options,
                 std::vector<protocol::WorkSink*> sinks,
                 ReportBoard& board)
      : options_(std::move(options)), sinks_(std::move(sinks)), board_(board) {}

  ~GrpcWorkServer() override {
    if (server_) {
      server_->Shutdown(std::chrono::system_clock::now());  // until the clerk has ended all streams
    }
    is_stopping_ = true;
    signal_->Notify();
    if (clerk_.joinable()) {
      clerk_.join();
    }
  }

  absl::Status Listen() {
    clerk_ = std::thread([this] { RunClerk(); });
    ZP_ASSIGN_OR_RETURN(
        cluster::GrpcServer started,
        cluster::StartGrpcServer({.name = "work_plane",
                                  .address = options_.address,
                                  .port = options_.port,
                                  .tls_certificate_file = options_.tls_certificate_file,
                                  .tls_key_file = options_.tls_key_file,
                                  .allow_plaintext = options_.allow_plaintext,
                                  .max_message_bytes = kMaxMessageBytes,
                                  .memory_bytes = kServerMemoryBytes},
                                 *this));
    server_ = std::move(started.server);
    port_ = started.port;
    return absl::OkStatus();
  }

  uint16_t port() const override { return port_; }

  bool Drain(Clock::time_point deadline) override {
    std::unique_lock lock(mutex_);
    is_draining_ = true;
    for (const std::shared_ptr<GatewayLink>& link : links_) {
      link->StartDraining();
    }
    return advanced_.wait_until(lock, deadline, [this] {
      return std::all_of(
          links_.begin(), links_.end(), [](const auto& link) { return link->is_idle(); });
    });
  }

  grpc::ServerBidiReactor<wire::FromGateway, wire::FromWorker>* Serve(
      grpc::CallbackServerContext* context) override {
    if (const absl::Status status = CheckToken(*context); !status.ok()) {
      base::log::warn("work plane: {} was refused: {}", context->peer(), base::MessageOf(status));
      return new Refusal({grpc::StatusCode::UNAUTHENTICATED, base::MessageOf(status)});
    }
    const auto link = std::make_shared<GatewayLink>(*context, options_, sinks_, board_, signal_);
    {
      const std::lock_guard lock(mutex_);
      if (is_draining_) {
        return new Refusal({grpc::StatusCode::UNAVAILABLE, "the worker is ending"});
      }
      links_.push_back(link);
    }
    base::log::info("work plane: {} is here", context->peer());
    signal_->Notify();
    link->Start();
    return link.get();  // has a share in itself until gRPC is done with it
  }

 private:
  absl::Status CheckToken(const grpc::CallbackServerContext& context) const {
    const auto& metadata = context.client_metadata();
    const auto shown = metadata.find(kTokenKey);
    if (shown == metadata.end() ||
        !cluster::SameSecret({shown->second.data(), shown->second.size()}, options_.join_token)) {
      return absl::UnauthenticatedError("the join token is not the worker's");
    }
    return absl::OkStatus();
  }

  void RunClerk() {
    while (!is_stopping_) {
      std::vector<std::shared_ptr<GatewayLink>> links;
      {
        const std::lock_guard lock(mutex_);
        links = links_;
      }
      const Clock::time_point now = Clock::now();
      for (const std::shared_ptr<GatewayLink>& link : links) {
        if (link->Advance(now)) {
          const std::lock_guard lock(mutex_);
          std::erase(links_, link);
        }
      }
      advanced_.notify_all();
      const auto far = std::chrono::hours(1);
      signal_->WaitUntil(links.empty() ? now + far : now + options_.gateway_timeout / 4);
    }
  }

  const WorkServerOptions options_;
  const std::vector<protocol::WorkSink*> sinks_;
  ReportBoard& board_;
  const std::shared_ptr<Signal> signal_ = std::make_shared<Signal>();  // of the clerk

  std::mutex mutex_;  // of the next three
  std::condition_variable advanced_;
  std::vector<std::shared_ptr<GatewayLink>> links_;
  bool is_draining_ = false;

  uint16_t port_ = 0;
  std::atomic<bool> is_stopping_ = false;
  std::thread clerk_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkServer>> WorkServer::Start(
    const WorkServerOptions& options, std::vector<protocol::WorkSink*> sinks, ReportBoard& board) {
  ZP_CHECK(static_cast<int32_t>(sinks.size()) == board.rank_count()) << sinks.size();
  auto server = std::make_unique<GrpcWorkServer>(options, std::move(sinks), board);
  ZP_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace zp::workplane
