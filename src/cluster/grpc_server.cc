#include "cluster/grpc_server.h"

#include "cluster/channel_security.h"
#include "cluster/host_address.h"
#include "fmt/format.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server_builder.h"

namespace zp::cluster {
namespace {

constexpr int kMaxMetadataBytes = 8 << 10;
constexpr int kHandshakeTimeoutMs = 5'000;
constexpr int kMinPingIntervalMs = 1'000;

}  // namespace

absl::StatusOr<GrpcServer> StartGrpcServer(const GrpcServerOptions& options,
                                           grpc::Service& service) {
  ZP_ASSIGN_OR_RETURN(const auto security,
                      ServerSecurity(options.address,
                                     options.tls_certificate_file,
                                     options.tls_key_file,
                                     options.allow_plaintext));
  const std::string target = TargetOf(options.address, options.port);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(target, security, &port);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetResourceQuota(grpc::ResourceQuota(options.name).Resize(options.memory_bytes));
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a port in use is an error
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  // Clients may ping, to notice a cut link, also between calls.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  GrpcServer result = {.server = builder.BuildAndStart()};
  if (!result.server || port == 0) {
    return absl::UnavailableError(fmt::format(
        "cannot listen on {}: the port is in use, the address not this machine's, or the "
        "certificate and key are no pair",
        target));
  }
  result.port = static_cast<uint16_t>(port);
  return result;
}

}  // namespace zp::cluster
