// The control plane over real sockets of this machine. Nothing is timed: a test waits until what
// must happen has happened, and the time-out of ctest ends it if it does not.

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <random>

#include "cluster/control_plane.grpc.pb.h"
#include "cluster/coordinator.h"
#include "cluster/member.h"
#include "cluster/testing.h"
#include "cluster/wire.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"

namespace zp::cluster {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr char kToken[] = "a token of the tests";

CoordinatorOptions ForCoordinator(int32_t host_slots) {
  return {.join_token = kToken,
          .model_fingerprint = "qwen3/amx",
          .placement = {.host_slots = host_slots, .expert_memory_bytes = 1000, .rank_count = 2},
          .heartbeat_interval = milliseconds(20),
          .member_timeout = milliseconds(1000)};
}

MemberOptions ForMember(const Coordinator& coordinator) {
  return {.coordinator = fmt::format("127.0.0.1:{}", coordinator.port()),
          .join_token = kToken,
          .model_fingerprint = "qwen3/amx",
          .expert_memory_bytes = 1000,
          .rank_count = 1,
          .join_timeout = milliseconds(20'000)};
}

// What one host has heard.
class Ear {
 public:
  std::function<void(const Membership&)> Listen() {
    return [this](const Membership& membership) {
      const std::lock_guard lock(mutex_);
      EXPECT_GT(membership.epoch, heard_.epoch) << "an epoch never falls";
      heard_ = membership;
      changed_.notify_all();
    };
  }
  Membership WaitForHosts(size_t count) {
    return WaitFor([count](const Membership& heard) { return heard.hosts.size() == count; });
  }
  template <typename Predicate>
  Membership WaitFor(const Predicate& predicate) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return predicate(heard_); });
    return heard_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Membership heard_ = {};
};

std::unique_ptr<Coordinator> Start(const CoordinatorOptions& options, Ear* ear = nullptr) {
  auto coordinator = Coordinator::Start(options, ear ? ear->Listen() : Coordinator::OnChange());
  EXPECT_TRUE(coordinator.ok()) << coordinator.status();
  return *std::move(coordinator);
}

std::unique_ptr<Member> Join(const MemberOptions& options, Ear* ear = nullptr) {
  auto member = Member::Join(options, ear ? ear->Listen() : Member::OnChange());
  EXPECT_TRUE(member.ok()) << member.status();
  return *std::move(member);
}

// A worker by hand, which can die in any way: it says nothing unless told to.
class BareWorker {
 public:
  explicit BareWorker(const Coordinator& coordinator)
      : stub_(wire::ControlPlane::NewStub(Channel(coordinator))) {
    wire::RegisterRequest request;
    request.set_join_token(kToken);
    request.set_model_fingerprint("qwen3/amx");
    request.set_expert_memory_bytes(1000);
    request.set_rank_count(1);
    request.set_advertisement("bare");
    grpc::ClientContext context;
    EXPECT_TRUE(stub_->Register(&context, request, &registered_).ok());
  }

  const wire::RegisterReply& registered() const { return registered_; }
  wire::ControlPlane::Stub& stub() { return *stub_; }

 private:
  static std::shared_ptr<grpc::Channel> Channel(const Coordinator& coordinator) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", coordinator.port()),
                                     grpc::InsecureChannelCredentials(),
                                     arguments);
  }

  std::unique_ptr<wire::ControlPlane::Stub> stub_;
  wire::RegisterReply registered_;
};

TEST(Cluster, AWorkerJoinsPublishesLeavesAndComesBack) {
  Ear own_ear;
  Ear ear;
  const CoordinatorOptions options = ForCoordinator(3);
  const auto coordinator = Start(options, &own_ear);
  ASSERT_TRUE(coordinator->SetSelf({"own"}).ok());
  own_ear.WaitForHosts(1);
  auto member = Join(ForMember(*coordinator), &ear);
  EXPECT_EQ(member->slot(), 1);
  EXPECT_EQ(member->placement(), options.placement);
  EXPECT_EQ(ear.WaitForHosts(1).hosts[0], (MemberHost{0, {"own"}})) << "before it has published";
  const std::string bytes("\0\xff memory", 9);
  ASSERT_TRUE(member->Publish({bytes, "10.0.0.2:7"}).ok());
  EXPECT_EQ(ear.WaitForHosts(2).hosts[1], (MemberHost{1, {bytes, "10.0.0.2:7"}}));
  const uint64_t with_both = own_ear.WaitForHosts(2).epoch;
  member.reset();
  EXPECT_EQ(own_ear.WaitForHosts(1).epoch, with_both + 1);
  EXPECT_EQ(Join(ForMember(*coordinator))->slot(), 1);
}

TEST(Cluster, RefusesAWrongTokenAnotherModelAndTooLittleMemory) {
  const auto coordinator = Start(ForCoordinator(2));
  MemberOptions options = ForMember(*coordinator);
  options.join_token = "a token of somebody else";
  EXPECT_TRUE(absl::IsPermissionDenied(Member::Join(options).status()));
  options = ForMember(*coordinator);
  options.model_fingerprint = "mixtral/avx2";
  const absl::Status other_model = Member::Join(options).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(other_model)) << other_model;
  EXPECT_THAT(base::MessageOf(other_model), HasSubstr("mixtral/avx2"));
  EXPECT_THAT(base::MessageOf(other_model), HasSubstr("qwen3/amx"));
  options = ForMember(*coordinator);
  options.expert_memory_bytes = 999;
  EXPECT_TRUE(absl::IsFailedPrecondition(Member::Join(options).status()));
  options = ForMember(*coordinator);
  options.rank_count = 3;
  EXPECT_TRUE(absl::IsFailedPrecondition(Member::Join(options).status()));
  EXPECT_EQ(Join(ForMember(*coordinator))->slot(), 1) << "the refused took no slot";
}

TEST(Cluster, AFullClusterSaysSo) {
  const auto coordinator = Start(ForCoordinator(2));
  const auto member = Join(ForMember(*coordinator));
  const absl::Status status = Member::Join(ForMember(*coordinator)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(base::MessageOf(status), HasSubstr("all its 2 host slots are taken"));
}

TEST(Cluster, AWorkerThatFallsSilentIsRemoved) {
  Ear ear;
  CoordinatorOptions options = ForCoordinator(2);
  options.member_timeout = milliseconds(200);
  const auto coordinator = Start(options, &ear);
  BareWorker frozen(*coordinator);
  const uint64_t with_it = frozen.registered().members().epoch();
  EXPECT_GT(ear.WaitFor([&](const Membership& heard) { return heard.epoch > with_it; }).epoch,
            with_it);
  EXPECT_TRUE(coordinator->membership().hosts.empty());
  wire::HeartbeatRequest request;
  *request.mutable_session() = frozen.registered().session();
  wire::HeartbeatReply reply;
  grpc::ClientContext context;
  EXPECT_EQ(frozen.stub().Heartbeat(&context, request, &reply).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

// The time-outs are far longer than the test may take: only the connection's end can tell.
TEST(Cluster, AWorkerWhoseConnectionBreaksIsRemovedAtOnce) {
  Ear ear;
  CoordinatorOptions options = ForCoordinator(2);
  options.heartbeat_interval = std::chrono::minutes(4);
  options.member_timeout = std::chrono::minutes(10);
  const auto coordinator = Start(options, &ear);
  BareWorker killed(*coordinator);
  ear.WaitForHosts(1);
  wire::HeartbeatRequest request;
  *request.mutable_session() = killed.registered().session();
  // It already knows the epoch that its new advertisement makes, so its heartbeat is held; that the
  // advertisement is heard of tells that the heartbeat has arrived.
  request.set_known_epoch(killed.registered().members().epoch() + 1);
  request.set_advertisement("changed");
  wire::HeartbeatReply reply;
  grpc::ClientContext context;
  std::mutex mutex;
  std::condition_variable ended;
  bool is_ended = false;
  killed.stub().async()->Heartbeat(&context, &request, &reply, [&](const grpc::Status&) {
    const std::lock_guard lock(mutex);
    is_ended = true;
    ended.notify_all();
  });
  ear.WaitFor(
      [](const Membership& heard) { return heard.hosts[0].offer.advertisement == "changed"; });
  context.TryCancel();
  ear.WaitForHosts(0);
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return is_ended; });
}

TEST(Cluster, MembersOutliveTheirCoordinatorAndKeepTheirSlots) {
  CoordinatorOptions options = ForCoordinator(3);
  auto coordinator = Start(options);
  options.port = coordinator->port();
  Ear first_ear;
  Ear second_ear;
  const auto first = Join(ForMember(*coordinator), &first_ear);
  const auto second = Join(ForMember(*coordinator), &second_ear);
  ASSERT_TRUE(first->Publish({"first"}).ok());
  ASSERT_TRUE(second->Publish({"second"}).ok());
  const uint64_t before = first_ear.WaitForHosts(2).epoch;
  coordinator.reset();
  EXPECT_EQ(first->membership().hosts.size(), 2u) << "what was known stays known";
  coordinator = Start(options);
  const auto is_whole = [&](const Membership& heard) {
    return heard.epoch > before && heard.hosts.size() == 2;
  };
  const std::vector<MemberHost> both = {{1, {"first"}}, {2, {"second"}}};
  EXPECT_EQ(first_ear.WaitFor(is_whole).hosts, both);
  EXPECT_EQ(second_ear.WaitFor(is_whole).hosts, both);
}

// Others would read its memory at the places of the new placement.
TEST(Cluster, AWorkerOfAnotherPlacementNeverGetsASeatAgain) {
  CoordinatorOptions options = ForCoordinator(2);
  auto coordinator = Start(options);
  options.port = coordinator->port();
  const auto member = Join(ForMember(*coordinator));
  ASSERT_TRUE(member->Publish({"old"}).ok());
  coordinator.reset();
  options.placement.expert_memory_bytes = 900;
  coordinator = Start(options);
  ASSERT_TRUE(coordinator->SetSelf({"founder"}).ok());
  const uint64_t epoch = coordinator->membership().epoch;
  std::this_thread::sleep_for(milliseconds(1000));  // several attempts
  const std::vector<MemberHost> alone = {{0, {"founder"}}};
  EXPECT_EQ(coordinator->membership().hosts, alone);
  EXPECT_EQ(coordinator->membership().epoch, epoch) << "it had a seat for a while";
}

TEST(Cluster, EightHostsSeeTheSameEpoch) {
  constexpr int32_t kHosts = 8;
  Ear own_ear;
  const auto coordinator = Start(ForCoordinator(kHosts), &own_ear);
  ASSERT_TRUE(coordinator->SetSelf({"0"}).ok());
  std::vector<Ear> ears(kHosts - 1);
  std::vector<std::unique_ptr<Member>> members;
  for (Ear& ear : ears) {
    members.push_back(Join(ForMember(*coordinator), &ear));
    ASSERT_TRUE(members.back()->Publish({fmt::format("{}", members.size())}).ok());
  }
  const Membership all = own_ear.WaitForHosts(kHosts);
  for (Ear& ear : ears) {
    const Membership heard = ear.WaitForHosts(kHosts);
    EXPECT_EQ(heard.epoch, all.epoch);
    EXPECT_EQ(heard.hosts, all.hosts);
  }
}

// Whatever is sent, the connection may end as it likes: the members must notice nothing.
TEST(Cluster, GarbageHurtsNobody) {
  Ear ear;
  const auto coordinator = Start(ForCoordinator(3));
  const auto member = Join(ForMember(*coordinator), &ear);
  std::mt19937 random(1);
  for (int connection = 0; connection < 20; ++connection) {
    const int number = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(coordinator->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(number, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    std::string garbage = connection % 2 == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "";
    for (int i = 0; i < 4096; ++i) {
      garbage.push_back(static_cast<char>(random()));
    }
    send(number, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    close(number);
  }
  BareWorker worker(*coordinator);
  wire::HeartbeatRequest too_long;
  *too_long.mutable_session() = worker.registered().session();
  too_long.set_advertisement(std::string(size_t{1} << 20, 'a'));
  wire::HeartbeatReply reply;
  grpc::ClientContext context;
  EXPECT_EQ(worker.stub().Heartbeat(&context, too_long, &reply).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  ASSERT_TRUE(member->Publish({"memory"}).ok());
  const Membership heard = ear.WaitFor([](const Membership& membership) {
    return !membership.hosts.empty() && membership.hosts[0].offer.advertisement == "memory";
  });
  EXPECT_EQ(heard.hosts[0].slot, 1);
  EXPECT_TRUE(absl::IsInvalidArgument(member->Publish({std::string(size_t{1} << 20, 'a')})));
  const std::string long_host(kMaxWorkAddressBytes, 'a');
  EXPECT_TRUE(absl::IsInvalidArgument(member->Publish({"memory", long_host + ":1"})));
  EXPECT_TRUE(absl::IsInvalidArgument(member->Publish({"memory", "nowhere"})));
}

TEST(Cluster, RefusesOptionsOutsideTheirLimits) {
  const auto code = [](const CoordinatorOptions& options) {
    return Coordinator::Start(options).status().code();
  };
  CoordinatorOptions options = ForCoordinator(2);
  options.join_token = "short";
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(ForCoordinator(0)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(ForCoordinator(kMaxHostSlots + 1)), absl::StatusCode::kInvalidArgument);
  options = ForCoordinator(2);
  options.member_timeout = options.heartbeat_interval;
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  const auto coordinator = Start(ForCoordinator(2));
  options = ForCoordinator(2);
  options.port = coordinator->port();
  EXPECT_EQ(code(options), absl::StatusCode::kUnavailable) << "the port is in use";
}

TEST(Cluster, PlainTextStaysOnPrivateNetworks) {
  CoordinatorOptions options = ForCoordinator(2);
  options.address = "0.0.0.0";
  EXPECT_TRUE(absl::IsPermissionDenied(Coordinator::Start(options).status()));
  options.allow_plaintext = true;
  EXPECT_TRUE(Coordinator::Start(options).ok());
  for (const char* target : {"8.8.8.8:1", "172.32.0.1:1", "[2001:db8::1]:1", "example.org:1"}) {
    EXPECT_TRUE(absl::IsPermissionDenied(
        Member::Join({.coordinator = target, .join_token = kToken}).status()))
        << target;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      Member::Join({.coordinator = "127.0.0.1", .join_token = kToken}).status()));
}

TEST(Cluster, SpeaksTlsAndOnlyTls) {
  const SelfSigned self_signed;
  CoordinatorOptions options = ForCoordinator(2);
  options.tls_certificate_file = self_signed.certificate_file();
  options.tls_key_file = self_signed.key_file();
  const auto coordinator = Start(options);
  MemberOptions member = ForMember(*coordinator);
  member.join_timeout = milliseconds(100);
  EXPECT_TRUE(absl::IsUnavailable(Member::Join(member).status())) << "plain text";
  member = ForMember(*coordinator);
  member.tls_root_certificates_file = self_signed.certificate_file();
  EXPECT_EQ(Join(member)->slot(), 1);
  member.tls_root_certificates_file = self_signed.key_file() + ".none";
  EXPECT_TRUE(absl::IsNotFound(Member::Join(member).status()));
  options.tls_key_file = "";
  EXPECT_TRUE(absl::IsInvalidArgument(Coordinator::Start(options).status()));
}

}  // namespace
}  // namespace zp::cluster
