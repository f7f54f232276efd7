// How the connections of control plane and work plane are protected: TLS, or plain text where
// nobody else listens.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"

namespace zp::cluster {

// TLS if the files (PEM) are named. Errors: InvalidArgument for one file without the other;
// PermissionDenied without TLS on an address that is not private, unless `allow_plaintext`;
// NotFound for a file that cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerSecurity(
    const std::string& address,
    const std::string& certificate_file,
    const std::string& key_file,
    bool allow_plaintext);

// TLS if the file with the root certificates (PEM) is named. Errors: as above.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelSecurity(
    const std::string& target, const std::string& root_certificates_file, bool allow_plaintext);

}  // namespace zp::cluster
