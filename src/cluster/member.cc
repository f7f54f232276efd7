#include "cluster/member.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/logging.h"
#include "cluster/channel_security.h"
#include "cluster/control_plane.grpc.pb.h"
#include "cluster/roster.h"
#include "cluster/wire.h"
#include "fmt/format.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"

namespace zp::cluster {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{50};
constexpr milliseconds kLongestPause{2000};
constexpr milliseconds kRegisterTimeout{5000};
constexpr milliseconds kLeaveTimeout{1000};
constexpr milliseconds kKeepaliveInterval{5000};
constexpr uint32_t kMaxMemberTimeoutMs = 600'000;
constexpr int kMaxReplyBytes =
    kMaxHostSlots * (static_cast<int>(kMaxAdvertisementBytes + kMaxWorkAddressBytes) + 64) +
    (8 << 10);

std::shared_ptr<grpc::Channel> Dial(const std::string& target,
                                    const std::shared_ptr<grpc::ChannelCredentials>& security) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReplyBytes);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kFirstPause.count());
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kLongestPause.count());
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kLongestPause.count());
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // hosts of a cluster see each other
  // A link that was cut is noticed though nobody closes the connection.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveInterval.count());
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveInterval.count());
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // as many as there are
  // A member's connection is its own: it ends with it.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(target, security, arguments);
}

// Slots come in rising order (FromWire).
absl::Status CheckSlots(const Membership& membership, const PlacementInputs& placement) {
  if (!membership.hosts.empty() && membership.hosts.back().slot >= placement.host_slots) {
    return absl::InvalidArgumentError(fmt::format(
        "the coordinator names slot {} of {}", membership.hosts.back().slot, placement.host_slots));
  }
  return absl::OkStatus();
}

class GrpcMember final : public Member {
 public:
  GrpcMember(MemberOptions options,
             OnChange on_change,
             const std::shared_ptr<grpc::ChannelCredentials>& security)
      : options_(std::move(options)),
        on_change_(std::move(on_change)),
        stub_(wire::ControlPlane::NewStub(Dial(options_.coordinator, security))) {}

  ~GrpcMember() override {
    if (!heart_.joinable()) {
      return;  // never joined
    }
    const Session session = BeginStop();
    Leave(session);
    {
      const std::lock_guard lock(mutex_);
      if (call_ != nullptr) {
        call_->TryCancel();
      }
    }
    heart_.join();
  }

  absl::Status Start() {
    const auto give_up = std::chrono::steady_clock::now() + options_.join_timeout;
    milliseconds pause = kFirstPause;
    while (true) {
      absl::Status status = Register(std::nullopt);
      if (status.ok()) {
        break;
      }
      if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
        return status;
      }
      if (std::chrono::steady_clock::now() + pause > give_up) {
        return absl::UnavailableError(fmt::format("no coordinator at {} within {} ms: {}",
                                                  options_.coordinator,
                                                  options_.join_timeout.count(),
                                                  base::MessageOf(status)));
      }
      Pause(pause);
    }
    heart_ = std::thread([this] { Beat(); });
    return absl::OkStatus();
  }

  int32_t slot() const override { return slot_; }
  const PlacementInputs& placement() const override { return placement_; }
  bool connected() const override { return connected_; }

  absl::Status Publish(const HostOffer& offer) override {
    ZP_RETURN_IF_ERROR(CheckOffer(offer));
    const std::lock_guard lock(mutex_);
    offer_ = offer;
    is_offered_ = false;
    return absl::OkStatus();
  }

  Membership membership() const override {
    const std::lock_guard lock(mutex_);
    return membership_;
  }

 private:
  // The thread that lives as long as the membership.
  void Beat() {
    TellIfChanged();
    milliseconds pause = kFirstPause;
    std::string last_complaint;
    while (!IsStopping()) {
      absl::Status status = Heartbeat();
      if (absl::IsNotFound(status)) {
        status = Register(slot_);
      }
      connected_ = status.ok();
      if (status.ok()) {
        pause = kFirstPause;
        last_complaint.clear();
        TellIfChanged();
        continue;
      }
      if (IsStopping()) {
        return;
      }
      const std::string complaint = base::MessageOf(status);
      if (std::exchange(last_complaint, complaint) != complaint) {
        base::log::warn("cluster: slot {} goes on without its coordinator: {}", slot_, complaint);
      }
      Pause(pause);
    }
  }

  // The first time `wanted_slot` is empty and the placement is learnt; later both must stay.
  absl::Status Register(std::optional<int32_t> wanted_slot) {
    wire::RegisterRequest request;
    request.set_join_token(options_.join_token);
    request.set_model_fingerprint(options_.model_fingerprint);
    request.set_expert_memory_bytes(options_.expert_memory_bytes);
    request.set_rank_count(options_.rank_count);
    std::optional<HostOffer> sent;
    {
      const std::lock_guard lock(mutex_);
      request.set_known_epoch(membership_.epoch);
      sent = offer_;
    }
    if (wanted_slot) {
      request.set_wanted_slot(*wanted_slot);
      ToWire(placement_, *request.mutable_loaded());
    }
    if (sent) {
      ToWire(*sent, request);
    }
    wire::RegisterReply reply;
    ZP_RETURN_IF_ERROR(Call(kRegisterTimeout, [&](grpc::ClientContext& context) {
      return stub_->Register(&context, request, &reply);
    }));
    return Accept(reply, wanted_slot, sent);
  }

  absl::Status Accept(const wire::RegisterReply& reply,
                      std::optional<int32_t> wanted_slot,
                      const std::optional<HostOffer>& sent) {
    ZP_ASSIGN_OR_RETURN(const PlacementInputs placement, FromWire(reply.placement()));
    ZP_ASSIGN_OR_RETURN(Membership membership, FromWire(reply.members()));
    const Session session = FromWire(reply.session());
    if (session.slot < 1 || session.slot >= placement.host_slots || reply.member_timeout_ms() < 1 ||
        reply.member_timeout_ms() > kMaxMemberTimeoutMs) {
      return absl::InvalidArgumentError(
          fmt::format("the coordinator gives slot {} of {} and a time-out of {} ms",
                      session.slot,
                      placement.host_slots,
                      reply.member_timeout_ms()));
    }
    ZP_RETURN_IF_ERROR(CheckSlots(membership, placement));
    if (wanted_slot && (session.slot != *wanted_slot || placement != placement_)) {
      Leave(session);
      return absl::FailedPreconditionError(
          "the coordinator came back with another placement: this host must be started anew");
    }
    const std::lock_guard lock(mutex_);
    if (!wanted_slot) {
      slot_ = session.slot;
      placement_ = placement;
    }
    session_ = session;
    member_timeout_ = milliseconds(reply.member_timeout_ms());
    membership_ = std::move(membership);
    is_offered_ = sent == offer_;
    return absl::OkStatus();
  }

  absl::Status Heartbeat() {
    wire::HeartbeatRequest request;
    std::optional<HostOffer> sent;
    {
      const std::lock_guard lock(mutex_);
      ToWire(session_, *request.mutable_session());
      request.set_known_epoch(membership_.epoch);
      if (!is_offered_) {
        sent = offer_;
      }
    }
    if (sent) {
      ToWire(*sent, request);
    }
    wire::HeartbeatReply reply;
    ZP_RETURN_IF_ERROR(Call(member_timeout_, [&](grpc::ClientContext& context) {
      return stub_->Heartbeat(&context, request, &reply);
    }));
    Membership heard;
    if (reply.has_members()) {
      ZP_ASSIGN_OR_RETURN(heard, FromWire(reply.members()));
      ZP_RETURN_IF_ERROR(CheckSlots(heard, placement_));
    }
    const std::lock_guard lock(mutex_);
    is_offered_ = is_offered_ || (sent && sent == offer_);
    if (reply.has_members()) {
      membership_ = std::move(heard);
    }
    return absl::OkStatus();
  }

  void Leave(const Session& session) {
    wire::LeaveRequest request;
    ToWire(session, *request.mutable_session());
    wire::LeaveReply reply;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kLeaveTimeout);
    stub_->Leave(&context, request, &reply);  // who cannot be told sees the heartbeat end
  }

  // A call that the destructor can cancel.
  template <typename Function>
  absl::Status Call(milliseconds timeout, const Function& call) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) {
        return absl::CancelledError("the member is leaving");
      }
      call_ = &context;
    }
    const grpc::Status status = call(context);
    const std::lock_guard lock(mutex_);
    call_ = nullptr;
    return FromGrpc(status);
  }

  void TellIfChanged() {
    const Membership membership = this->membership();
    if (std::exchange(told_epoch_, membership.epoch) != membership.epoch && on_change_) {
      on_change_(membership);
    }
  }

  // Waits so long, less if stopped, and doubles the pause.
  void Pause(milliseconds& pause) {
    std::unique_lock lock(mutex_);
    stop_.wait_for(lock, pause, [this] { return stopping_; });
    pause = std::min(2 * pause, kLongestPause);
  }

  bool IsStopping() const {
    const std::lock_guard lock(mutex_);
    return stopping_;
  }

  Session BeginStop() {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    stop_.notify_all();
    return session_;
  }

  const MemberOptions options_;
  const OnChange on_change_;
  const std::unique_ptr<wire::ControlPlane::Stub> stub_;

  // Set by Start, before there is a second thread.
  int32_t slot_ = -1;
  PlacementInputs placement_ = {};

  mutable std::mutex mutex_;  // of all up to call_
  std::condition_variable stop_;
  bool stopping_ = false;
  Session session_ = {};
  Membership membership_ = {};
  std::optional<HostOffer> offer_ = {};
  bool is_offered_ = true;
  grpc::ClientContext* call_ = nullptr;

  std::atomic<bool> connected_ = true;
  milliseconds member_timeout_{0};  // of the heartbeat's thread
  uint64_t told_epoch_ = 0;         // of the heartbeat's thread
  std::thread heart_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Member>> Member::Join(const MemberOptions& options,
                                                     OnChange on_change) {
  ZP_ASSIGN_OR_RETURN(
      const auto security,
      ChannelSecurity(
          options.coordinator, options.tls_root_certificates_file, options.allow_plaintext));
  auto member = std::make_unique<GrpcMember>(options, std::move(on_change), security);
  ZP_RETURN_IF_ERROR(member->Start());
  return member;
}

}  // namespace zp::cluster
