// A gRPC server as every plane of the cluster has one: on one address, within bounds of memory, and
// with a port that is its own.
//
// Thread safety: free function. Ownership: the service is lent until the server is shut down.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "grpcpp/server.h"

namespace zp::cluster {

struct GrpcServerOptions {
  std::string name;     // of its share of memory
  std::string address;  // numeric; the only one that is listened on
  uint16_t port = 0;    // 0: any that is free
  // As ServerSecurity takes them.
  std::string tls_certificate_file;
  std::string tls_key_file;
  bool allow_plaintext = false;
  int max_message_bytes = 0;  // that is received
  size_t memory_bytes = 0;    // of what is received and not yet handled
};

struct GrpcServer {
  std::unique_ptr<grpc::Server> server;
  uint16_t port = 0;
};

// Listens when it returns. Errors: those of ServerSecurity; Unavailable for a port in use or a
// certificate that is none.
absl::StatusOr<GrpcServer> StartGrpcServer(const GrpcServerOptions& options,
                                           grpc::Service& service);

}  // namespace zp::cluster
