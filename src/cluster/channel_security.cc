#include "cluster/channel_security.h"

#include <fstream>
#include <iterator>

#include "cluster/host_address.h"
#include "fmt/format.h"

namespace zp::cluster {
namespace {

absl::Status RefusePlaintext(const std::string& host) {
  return absl::PermissionDeniedError(fmt::format(
      "'{}' is no loopback or private address: what is said between hosts carries the join token, "
      "so it needs TLS there",
      host));
}

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || text.empty()) {
    return absl::NotFoundError(fmt::format("{} cannot be read or is empty", path));
  }
  return text;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerSecurity(
    const std::string& address,
    const std::string& certificate_file,
    const std::string& key_file,
    bool allow_plaintext) {
  if (certificate_file.empty() != key_file.empty()) {
    return absl::InvalidArgumentError("TLS needs both a certificate file and a key file");
  }
  if (certificate_file.empty()) {
    if (!allow_plaintext && !IsPrivateHost(address)) {
      return RefusePlaintext(address);
    }
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ZP_ASSIGN_OR_RETURN(pair.cert_chain, ReadPem(certificate_file));
  ZP_ASSIGN_OR_RETURN(pair.private_key, ReadPem(key_file));
  grpc::SslServerCredentialsOptions options(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  options.pem_key_cert_pairs.push_back(pair);
  return grpc::SslServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelSecurity(
    const std::string& target, const std::string& root_certificates_file, bool allow_plaintext) {
  const std::string host = HostOf(target);
  if (host.empty()) {
    return absl::InvalidArgumentError(fmt::format("'{}' is not HOST:PORT", target));
  }
  if (root_certificates_file.empty()) {
    if (!allow_plaintext && !IsPrivateHost(host)) {
      return RefusePlaintext(host);
    }
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions options;
  ZP_ASSIGN_OR_RETURN(options.pem_root_certs, ReadPem(root_certificates_file));
  return grpc::SslCredentials(options);
}

}  // namespace zp::cluster
