#include "apps/cluster_seat.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "base/checksum.h"
#include "base/logging.h"
#include "cluster/host_address.h"
#include "fabric/socket_address.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

constexpr const char* kJoinTokenVariable = "ZEROPREFILL_JOIN_TOKEN";

std::vector<CLI::Option*> AddCommonFlags(CLI::App& command, ClusterOptions& options) {
  return {command.add_option("--join-token-file",
                             options.join_token_file,
                             "The secret that a host shows to join, 16 bytes at least; else the "
                             "environment's ZEROPREFILL_JOIN_TOKEN"),
          command
              .add_option("--weight-address",
                          options.weight_address,
                          "Address or interface on which other hosts read this one's experts")
              ->type_name("ADDRESS"),
          command.add_option("--weight-port", options.weight_port, "0 picks a free one")
              ->check(CLI::Range(0, 65535))
              ->capture_default_str(),
          command.add_option("--weight-transport", options.weight_transport, "tcp or ucx")
              ->check(CLI::IsMember({"tcp", "ucx"}))
              ->capture_default_str(),
          command.add_flag("--cluster-plaintext",
                           options.allow_plaintext,
                           "Let the control plane do without TLS on public addresses too")};
}

absl::StatusOr<std::string> ReadJoinToken(const ClusterOptions& options) {
  if (options.join_token_file.empty()) {
    const char* token = std::getenv(kJoinTokenVariable);
    if (token == nullptr) {
      return absl::InvalidArgumentError(fmt::format(
          "hosts that share experts need a secret: --join-token-file FILE (`openssl rand -hex 16` "
          "makes one) or {} in the environment",
          kJoinTokenVariable));
    }
    return token;
  }
  std::ifstream file(options.join_token_file, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(
        fmt::format("--join-token-file {}: cannot be read", options.join_token_file));
  }
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return std::string(absl::StripAsciiWhitespace(text));
}

}  // namespace

void AddFounderFlags(CLI::App& command, ClusterOptions& options) {
  CLI::Option* const hosts =
      command
          .add_option("--hosts",
                      options.host_count,
                      "Hosts that share the experts, this one included; each gives "
                      "--expert-memory. The others join with `zeroprefill worker`")
          ->check(CLI::Range(1, cluster::kMaxHostSlots))
          ->capture_default_str();
  std::vector<CLI::Option*> of_hosts = AddCommonFlags(command, options);
  of_hosts.push_back(
      command
          .add_option("--redundancy",
                      options.redundancy,
                      "Copies of each expert that the hosts' memory must hold; 0: files may do")
          ->check(CLI::Range(0, cluster::kMaxHostSlots))
          ->capture_default_str());
  of_hosts.push_back(
      command
          .add_option("--cluster-address", options.address, "Where hosts join: a numeric address")
          ->capture_default_str());
  of_hosts.push_back(command.add_option("--cluster-port", options.port, "0 picks a free one")
                         ->check(CLI::Range(0, 65535))
                         ->capture_default_str());
  of_hosts.push_back(command.add_option(
      "--cluster-cert", options.tls_certificate_file, "PEM; TLS where hosts join"));
  of_hosts.push_back(
      command.add_option("--work-roots",
                         options.work_root_certificates_file,
                         "PEM; root certificates for TLS to where workers take works"));
  of_hosts.push_back(
      command.add_option("--cluster-key", options.tls_key_file, "PEM, of --cluster-cert"));
  for (CLI::Option* option : of_hosts) {
    option->needs(hosts);
  }
}

void AddWorkerFlags(CLI::App& command, ClusterOptions& options) {
  command
      .add_option("--join", options.coordinator, "The `serve --hosts` that says where hosts join")
      ->type_name("HOST:PORT")
      ->check([](const std::string& target) {
        return cluster::HostOf(target).empty() ? fmt::format("'{}' is not HOST:PORT", target) : "";
      })
      ->required();
  command.add_option("--cluster-roots",
                     options.tls_root_certificates_file,
                     "PEM; root certificates for TLS to --join");
  command
      .add_option("--work-address",
                  options.work_address,
                  "Address or interface on which the founder brings works (default: that of "
                  "--weight-address)")
      ->type_name("ADDRESS");
  command.add_option("--work-port", options.work_port, "0 picks a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command.add_option("--work-cert", options.work_certificate_file, "PEM; TLS where works come in");
  command.add_option("--work-key", options.work_key_file, "PEM, of --work-cert");
  AddCommonFlags(command, options);
}

absl::StatusOr<std::unique_ptr<ClusterSeat>> ClusterSeat::Take(const ClusterOptions& options,
                                                               const Share& share) {
  std::unique_ptr<ClusterSeat> seat(new ClusterSeat(options));
  ZP_ASSIGN_OR_RETURN(seat->join_token_, ReadJoinToken(options));
  seat->model_fingerprint_ = share.model_fingerprint;
  ZP_RETURN_IF_ERROR(options.coordinator.empty() ? seat->Found(share) : seat->Join(share));
  return seat;
}

ClusterSeat::~ClusterSeat() { StopWorks(); }

absl::Status ClusterSeat::Found(const Share& share) {
  placement_ = {.host_slots = options_.host_count,
                .expert_memory_bytes = static_cast<uint64_t>(share.expert_memory_bytes),
                .rank_count = share.rank_count,
                .window_slot_count = share.window_slot_count,
                .redundancy = options_.redundancy};
  ZP_RETURN_IF_ERROR(options_.weight_address.empty()
                         ? SetWeightAddress("--cluster-address", options_.address)
                         : SetWeightAddress("--weight-address", options_.weight_address));
  ZP_ASSIGN_OR_RETURN(coordinator_,
                      cluster::Coordinator::Start(
                          {.address = options_.address,
                           .port = options_.port,
                           .join_token = join_token_,
                           .tls_certificate_file = options_.tls_certificate_file,
                           .tls_key_file = options_.tls_key_file,
                           .allow_plaintext = options_.allow_plaintext,
                           .model_fingerprint = share.model_fingerprint,
                           .placement = placement_},
                          [this](const cluster::Membership& membership) { OnChange(membership); }));
  base::log::info("cluster: {} hosts join at {}:{}",
                  options_.host_count - 1,
                  options_.address,
                  coordinator_->port());
  return absl::OkStatus();
}

// What is wrong with it is said before anything is loaded.
absl::Status ClusterSeat::SetWeightAddress(const std::string& flag, const std::string& value) {
  const absl::StatusOr<std::string> address = fabric::HostOfInterface(value);
  if (!address.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", flag, base::MessageOf(address.status())));
  }
  weight_address_ = *address;
  return absl::OkStatus();
}

absl::Status ClusterSeat::Join(const Share& share) {
  if (!options_.weight_address.empty()) {
    ZP_RETURN_IF_ERROR(SetWeightAddress("--weight-address", options_.weight_address));
  }
  ZP_ASSIGN_OR_RETURN(member_,
                      cluster::Member::Join(
                          {.coordinator = options_.coordinator,
                           .join_token = join_token_,
                           .tls_root_certificates_file = options_.tls_root_certificates_file,
                           .allow_plaintext = options_.allow_plaintext,
                           .model_fingerprint = share.model_fingerprint,
                           .expert_memory_bytes = static_cast<uint64_t>(share.expert_memory_bytes),
                           .rank_count = share.rank_count},
                          [this](const cluster::Membership& membership) { OnChange(membership); }));
  if (options_.weight_address.empty()) {
    ZP_ASSIGN_OR_RETURN(weight_address_,
                        fabric::OwnHostTowards(cluster::HostOf(options_.coordinator)));
  }
  host_ = member_->slot();
  placement_ = member_->placement();
  base::log::info("cluster: host {} of {}", host_, placement_.host_slots);
  return absl::OkStatus();
}

uint64_t ClusterSeat::block_key() const {
  return base::KeyedHash(/*key=*/0, std::as_bytes(std::span(join_token_))).low;
}

std::map<int32_t, std::string> ClusterSeat::peers() const {
  return PeersIn(member_ != nullptr ? member_->membership() : coordinator_->membership());
}

std::map<int32_t, std::string> ClusterSeat::PeersIn(const cluster::Membership& membership) const {
  std::map<int32_t, std::string> peers;
  for (const cluster::MemberHost& host : membership.hosts) {
    if (host.slot != host_) {
      peers[host.slot] = host.offer.advertisement;
    }
  }
  return peers;
}

absl::Status ClusterSeat::Open(std::span<const std::byte> kept_bytes,
                               std::vector<engine::Engine*> engines) {
  const fabric::MemoryRegion region{.object = 0, .bytes = kept_bytes};
  ZP_ASSIGN_OR_RETURN(server_,
                      fabric::ServeMemory(std::span(&region, 1),
                                          {.address = weight_address_,
                                           .port = options_.weight_port,
                                           .transport = options_.weight_transport == "ucx"
                                                            ? fabric::PeerTransport::kUcx
                                                            : fabric::PeerTransport::kTcp}));
  {
    const std::lock_guard lock(mutex_);
    engines_ = std::move(engines);
    ConnectPeers();
  }
  const cluster::HostOffer offer = {.advertisement = server_->advertisement(),
                                    .work_address = work_target_};
  return member_ != nullptr ? member_->Publish(offer) : coordinator_->SetSelf(offer);
}

absl::StatusOr<std::string> ClusterSeat::WorkAddress() const {
  if (options_.work_address.empty()) {
    return weight_address_;
  }
  absl::StatusOr<std::string> address = fabric::HostOfInterface(options_.work_address);
  if (!address.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("--work-address: {}", base::MessageOf(address.status())));
  }
  return address;
}

absl::Status ClusterSeat::HoldOutRanks(std::vector<protocol::WorkSink*> ranks,
                                       workplane::ReportBoard& board,
                                       uint64_t max_held_blocks) {
  ZP_ASSIGN_OR_RETURN(const std::string address, WorkAddress());
  ZP_ASSIGN_OR_RETURN(
      work_server_,
      workplane::WorkServer::Start({.address = address,
                                    .port = options_.work_port,
                                    .join_token = join_token_,
                                    .tls_certificate_file = options_.work_certificate_file,
                                    .tls_key_file = options_.work_key_file,
                                    .allow_plaintext = options_.allow_plaintext,
                                    .model_fingerprint = model_fingerprint_,
                                    .max_held_blocks = max_held_blocks},
                                   std::move(ranks),
                                   board));
  work_target_ = cluster::TargetOf(address, work_server_->port());
  base::log::info("cluster: works come in at {}", work_target_);
  return absl::OkStatus();
}

void ClusterSeat::FollowRanks(RankEvents events) {
  workplane::RemoteHostOptions options;
  options.join_token = join_token_;
  options.model_fingerprint = model_fingerprint_;
  options.tls_root_certificates_file = options_.work_root_certificates_file;
  options.allow_plaintext = options_.allow_plaintext;
  const std::lock_guard lock(mutex_);
  work_hosts_ = std::make_unique<WorkHosts>(host_, std::move(options), std::move(events));
  work_hosts_->OnChange(membership_);
}

bool ClusterSeat::DrainWorks(std::chrono::steady_clock::time_point deadline) {
  return work_server_ == nullptr || work_server_->Drain(deadline);
}

void ClusterSeat::StopWorks() {
  work_server_.reset();
  const std::lock_guard lock(mutex_);
  if (work_hosts_ != nullptr) {
    work_hosts_->Stop();
  }
}

void ClusterSeat::OnChange(const cluster::Membership& membership) {
  const std::lock_guard lock(mutex_);
  membership_ = membership;
  hosts_gauge_.Set(static_cast<double>(membership.hosts.size()));
  epoch_gauge_.Set(static_cast<double>(membership.epoch));
  ConnectPeers();
  if (work_hosts_ != nullptr) {
    work_hosts_->OnChange(membership);
  }
}

// REQUIRES: the lock. The engines read from the hosts of membership_ and from no others.
void ClusterSeat::ConnectPeers() {
  if (engines_.empty()) {
    return;
  }
  std::map<int32_t, std::string> wanted = PeersIn(membership_);
  for (int32_t host = 0; host < placement_.host_slots; ++host) {
    if (host != host_) {
      ConnectPeer(host, wanted[host]);
    }
  }
}

void ClusterSeat::ConnectPeer(int32_t host, const std::string& advertisement) {
  std::string& connected = connected_[host];
  if (connected == advertisement) {
    return;
  }
  connected = advertisement;
  absl::Status status;
  for (engine::Engine* engine : engines_) {
    status.Update(engine->ConnectHost(host, advertisement));
  }
  if (status.ok()) {
    base::log::info(
        "cluster: host {} {}", host, advertisement.empty() ? "is gone" : "can be read from");
    return;
  }
  base::log::warn("cluster: host {} cannot be read from: {}", host, base::MessageOf(status));
  for (engine::Engine* engine : engines_) {
    engine->ConnectHost(host, "").IgnoreError();  // to connect to none cannot fail
  }
}

}  // namespace zp::apps
