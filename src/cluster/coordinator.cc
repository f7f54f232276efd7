#include "cluster/coordinator.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/logging.h"
#include "cluster/control_plane.grpc.pb.h"
#include "cluster/grpc_server.h"
#include "cluster/host_address.h"
#include "cluster/roster.h"
#include "cluster/secret.h"
#include "cluster/wire.h"
#include "fmt/format.h"
#include "grpcpp/server.h"

namespace zp::cluster {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kMaxRequestBytes =
    static_cast<int>(kMaxAdvertisementBytes + kMaxWorkAddressBytes) + (8 << 10);
constexpr size_t kServerMemoryBytes = size_t{64} << 20;

absl::Status CheckOptions(const CoordinatorOptions& options) {
  ZP_RETURN_IF_ERROR(CheckPlacement(options.placement));
  if (options.join_token.size() < kMinJoinTokenBytes ||
      options.join_token.size() > kMaxJoinTokenBytes) {
    return absl::InvalidArgumentError(
        fmt::format("the join token has {} bytes; it must have {} to {}",
                    options.join_token.size(),
                    kMinJoinTokenBytes,
                    kMaxJoinTokenBytes));
  }
  if (options.model_fingerprint.size() > kMaxFingerprintBytes) {
    return absl::InvalidArgumentError(fmt::format("model_fingerprint has {} bytes, the limit is {}",
                                                  options.model_fingerprint.size(),
                                                  kMaxFingerprintBytes));
  }
  if (options.heartbeat_interval < milliseconds(1) ||
      options.member_timeout < 2 * options.heartbeat_interval ||
      options.member_timeout > std::chrono::minutes(10)) {
    return absl::InvalidArgumentError(
        fmt::format("heartbeat_interval is {} ms and member_timeout {} ms; the time-out must be at "
                    "least twice the interval and at most 10 minutes",
                    options.heartbeat_interval.count(),
                    options.member_timeout.count()));
  }
  return absl::OkStatus();
}

class GrpcCoordinator;

// A heartbeat that waits for its answer. The coordinator owns it while it is held; once finished,
// gRPC ends it with OnDone.
class HeldHeartbeat final : public grpc::ServerUnaryReactor {
 public:
  HeldHeartbeat(GrpcCoordinator& coordinator,
                const wire::HeartbeatRequest& request,
                wire::HeartbeatReply& reply)
      : coordinator_(coordinator),
        session_(FromWire(request.session())),
        known_epoch_(request.known_epoch()),
        reply_(reply) {}

  void OnDone() override { delete this; }
  void OnCancel() override;

  const Session& session() const { return session_; }
  uint64_t known_epoch() const { return known_epoch_; }
  void Answer(const Membership& membership) {
    if (membership.epoch != known_epoch_) {
      ToWire(membership, *reply_.mutable_members());
    }
    Finish(grpc::Status::OK);
  }

 private:
  GrpcCoordinator& coordinator_;
  Session session_;
  uint64_t known_epoch_;
  wire::HeartbeatReply& reply_;
};

// Handlers of gRPC change the roster and wake the clerk, a thread that removes who has lapsed and
// answers heartbeats.
class GrpcCoordinator final : public Coordinator, public wire::ControlPlane::CallbackService {
 public:
  GrpcCoordinator(CoordinatorOptions options, OnChange on_change)
      : options_(std::move(options)),
        on_change_(std::move(on_change)),
        roster_(options_.placement.host_slots, options_.member_timeout),
        held_(options_.placement.host_slots) {}

  ~GrpcCoordinator() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (clerk_.joinable()) {
      clerk_.join();
    }
    if (server_) {
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    }
  }

  absl::Status Listen() {
    ZP_ASSIGN_OR_RETURN(GrpcServer started,
                        StartGrpcServer({.name = "control_plane",
                                         .address = options_.address,
                                         .port = options_.port,
                                         .tls_certificate_file = options_.tls_certificate_file,
                                         .tls_key_file = options_.tls_key_file,
                                         .allow_plaintext = options_.allow_plaintext,
                                         .max_message_bytes = kMaxRequestBytes,
                                         .memory_bytes = kServerMemoryBytes},
                                        *this));
    server_ = std::move(started.server);
    port_ = started.port;
    clerk_ = std::thread([this] { RunClerk(); });
    return absl::OkStatus();
  }

  uint16_t port() const override { return port_; }

  absl::Status SetSelf(const HostOffer& offer) override {
    const std::lock_guard lock(mutex_);
    ZP_RETURN_IF_ERROR(roster_.SetSelf(offer));
    wake_.notify_all();
    return absl::OkStatus();
  }

  Membership membership() const override {
    const std::lock_guard lock(mutex_);
    return roster_.membership();
  }

  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context,
                                     const wire::RegisterRequest* request,
                                     wire::RegisterReply* reply) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const absl::Status status = Admit(*request, *reply);
    if (status.ok()) {
      base::log::info("cluster: {} has slot {}", context->peer(), reply->session().slot());
    } else {
      base::log::warn("cluster: {} was refused: {}", context->peer(), base::MessageOf(status));
    }
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* /*context*/,
                                      const wire::HeartbeatRequest* request,
                                      wire::HeartbeatReply* reply) override {
    auto* heartbeat = new HeldHeartbeat(*this, *request, *reply);
    const absl::Status status = Hold(heartbeat, OfferOf(*request));
    if (!status.ok()) {
      heartbeat->Finish(ToGrpc(status));
    }
    return heartbeat;
  }

  grpc::ServerUnaryReactor* Leave(grpc::CallbackServerContext* context,
                                  const wire::LeaveRequest* request,
                                  wire::LeaveReply* /*reply*/) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const Session session = FromWire(request->session());
    reactor->Finish(ToGrpc(Remove(session)));
    return reactor;
  }

  // The connection of a heartbeat broke: its worker is gone. Nothing to do if it was answered.
  void Lose(HeldHeartbeat* heartbeat) {
    {
      const std::lock_guard lock(mutex_);
      const int32_t slot = SlotOf(heartbeat);
      if (slot < 0) {
        return;
      }
      held_[slot] = {};
      if (roster_.Remove(heartbeat->session()).ok()) {
        base::log::warn("cluster: the connection of slot {} broke", slot);
      }
      wake_.notify_all();
    }
    heartbeat->Finish({grpc::StatusCode::CANCELLED, "the connection broke"});
  }

 private:
  struct Held {
    HeldHeartbeat* heartbeat = nullptr;
    Clock::time_point until = Clock::time_point::max();
  };

  absl::Status CheckWorker(const wire::RegisterRequest& request) const {
    if (request.join_token().size() > kMaxJoinTokenBytes ||
        !SameSecret(request.join_token(), options_.join_token)) {
      return absl::PermissionDeniedError("the join token is not the coordinator's");
    }
    if (request.model_fingerprint().size() > kMaxFingerprintBytes) {
      return absl::InvalidArgumentError(
          fmt::format("model_fingerprint has {} bytes, the limit is {}",
                      request.model_fingerprint().size(),
                      kMaxFingerprintBytes));
    }
    if (request.model_fingerprint() != options_.model_fingerprint) {
      return absl::FailedPreconditionError(
          fmt::format("model_fingerprint is '{}' at the worker and '{}' at the coordinator",
                      request.model_fingerprint(),
                      options_.model_fingerprint));
    }
    if (request.expert_memory_bytes() < options_.placement.expert_memory_bytes) {
      return absl::FailedPreconditionError(
          fmt::format("expert_memory_bytes is {} at the worker; a slot of this cluster needs {}",
                      request.expert_memory_bytes(),
                      options_.placement.expert_memory_bytes));
    }
    const auto most_ranks = static_cast<uint32_t>(options_.placement.rank_count);
    if (request.rank_count() < 1 || request.rank_count() > most_ranks) {
      return absl::FailedPreconditionError(
          fmt::format("rank_count is {} at the worker; a slot of this cluster has 1 to {}",
                      request.rank_count(),
                      most_ranks));
    }
    if (request.has_loaded()) {
      ZP_ASSIGN_OR_RETURN(const PlacementInputs loaded, FromWire(request.loaded()));
      if (loaded != options_.placement) {
        return absl::FailedPreconditionError(
            "the cluster has another placement than the worker has loaded: the worker must be "
            "started anew");
      }
    }
    return absl::OkStatus();
  }

  absl::Status Admit(const wire::RegisterRequest& request, wire::RegisterReply& reply) {
    ZP_RETURN_IF_ERROR(CheckWorker(request));
    const auto wanted_slot = request.has_wanted_slot()
                                 ? std::optional(static_cast<int32_t>(request.wanted_slot()))
                                 : std::nullopt;
    const std::lock_guard lock(mutex_);
    ZP_RETURN_IF_ERROR(CheckRunning());
    ZP_ASSIGN_OR_RETURN(
        const Session session,
        roster_.Admit(wanted_slot, request.known_epoch(), OfferOf(request), Clock::now()));
    ToWire(session, *reply.mutable_session());
    ToWire(options_.placement, *reply.mutable_placement());
    ToWire(roster_.membership(), *reply.mutable_members());
    reply.set_member_timeout_ms(static_cast<uint32_t>(options_.member_timeout.count()));
    wake_.notify_all();
    return absl::OkStatus();
  }

  absl::Status Hold(HeldHeartbeat* heartbeat, const std::optional<HostOffer>& offer) {
    const std::lock_guard lock(mutex_);
    ZP_RETURN_IF_ERROR(CheckRunning());
    const Clock::time_point now = Clock::now();
    ZP_RETURN_IF_ERROR(roster_.Hear(heartbeat->session(), offer, now));
    Held& held = held_[heartbeat->session().slot];
    if (held.heartbeat != nullptr) {
      return absl::AlreadyExistsError("another heartbeat of this session waits for its answer");
    }
    held = {.heartbeat = heartbeat, .until = now + options_.heartbeat_interval};
    wake_.notify_all();
    return absl::OkStatus();
  }

  absl::Status Remove(const Session& session) {
    const std::lock_guard lock(mutex_);
    ZP_RETURN_IF_ERROR(roster_.Remove(session));
    base::log::info("cluster: slot {} left", session.slot);
    wake_.notify_all();
    return absl::OkStatus();
  }

  // REQUIRES: the lock.
  absl::Status CheckRunning() const {
    return stopping_ ? absl::UnavailableError("the coordinator is stopping") : absl::OkStatus();
  }

  // REQUIRES: the lock. -1: not held.
  int32_t SlotOf(const HeldHeartbeat* heartbeat) const {
    for (size_t slot = 0; slot < held_.size(); ++slot) {
      if (held_[slot].heartbeat == heartbeat) {
        return static_cast<int32_t>(slot);
      }
    }
    return -1;
  }

  void RunClerk() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      for (const int32_t slot : roster_.RemoveLapsed(Clock::now())) {
        base::log::warn("cluster: slot {} was not heard for {} ms and is removed",
                        slot,
                        options_.member_timeout.count());
      }
      const Membership membership = roster_.membership();
      const std::vector<HeldHeartbeat*> due = TakeDue();
      const std::vector<HeldHeartbeat*> orphans = TakeOrphans();
      const bool is_news = std::exchange(told_epoch_, membership.epoch) != membership.epoch;
      if (is_news || !due.empty() || !orphans.empty()) {
        lock.unlock();
        Tell(membership, due, orphans, is_news);
        lock.lock();
        continue;  // something may have happened meanwhile
      }
      WaitForEvent(lock);
    }
    std::vector<HeldHeartbeat*> rest;
    for (Held& held : held_) {
      if (held.heartbeat != nullptr) {
        rest.push_back(std::exchange(held, {}).heartbeat);
      }
    }
    lock.unlock();
    for (HeldHeartbeat* heartbeat : rest) {
      heartbeat->Finish({grpc::StatusCode::UNAVAILABLE, "the coordinator is stopping"});
    }
  }

  // REQUIRES: the lock. The heartbeats whose time is over or whose worker does not know the epoch.
  std::vector<HeldHeartbeat*> TakeDue() {
    return Take([&, now = Clock::now()](const Held& held) {
      return roster_.Knows(held.heartbeat->session()) &&
             (held.until <= now || held.heartbeat->known_epoch() != roster_.epoch());
    });
  }

  // REQUIRES: the lock. The heartbeats of sessions that are no more.
  std::vector<HeldHeartbeat*> TakeOrphans() {
    return Take([&](const Held& held) { return !roster_.Knows(held.heartbeat->session()); });
  }

  template <typename Predicate>
  std::vector<HeldHeartbeat*> Take(const Predicate& is_wanted) {
    std::vector<HeldHeartbeat*> taken;
    for (Held& held : held_) {
      if (held.heartbeat != nullptr && is_wanted(held)) {
        taken.push_back(std::exchange(held, {}).heartbeat);
      }
    }
    return taken;
  }

  void Tell(const Membership& membership,
            const std::vector<HeldHeartbeat*>& due,
            const std::vector<HeldHeartbeat*>& orphans,
            bool is_news) {
    for (HeldHeartbeat* heartbeat : due) {
      heartbeat->Answer(membership);
    }
    for (HeldHeartbeat* heartbeat : orphans) {
      heartbeat->Finish({grpc::StatusCode::NOT_FOUND, "the session is not known any more"});
    }
    if (is_news) {
      if (on_change_) {
        on_change_(membership);
      }
    }
  }

  // Until a handler wakes the clerk, a heartbeat is due or a worker lapses.
  void WaitForEvent(std::unique_lock<std::mutex>& lock) {
    Clock::time_point until = roster_.NextLapse();
    for (const Held& held : held_) {
      until = std::min(until, held.until);
    }
    if (until == Clock::time_point::max()) {
      wake_.wait(lock);
    } else {
      wake_.wait_until(lock, until);
    }
  }

  const CoordinatorOptions options_;
  const OnChange on_change_;

  mutable std::mutex mutex_;  // of all up to told_epoch_
  std::condition_variable wake_;
  Roster roster_;
  std::vector<Held> held_;  // [slot]
  bool stopping_ = false;
  uint64_t told_epoch_ = 1;

  uint16_t port_ = 0;
  std::thread clerk_;
  std::unique_ptr<grpc::Server> server_;
};

void HeldHeartbeat::OnCancel() { coordinator_.Lose(this); }

}  // namespace

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(const CoordinatorOptions& options,
                                                                OnChange on_change) {
  ZP_RETURN_IF_ERROR(CheckOptions(options));
  auto coordinator = std::make_unique<GrpcCoordinator>(options, std::move(on_change));
  ZP_RETURN_IF_ERROR(coordinator->Listen());
  return coordinator;
}

}  // namespace zp::cluster
