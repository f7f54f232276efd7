#include "cluster/channel_security.h"

#include <arpa/inet.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <iterator>

#include "fmt/format.h"

namespace zp::cluster {
namespace {

struct Ipv4Network {
  uint32_t address;
  int prefix_bits;
};

constexpr std::array<Ipv4Network, 5> kPrivateNetworks = {
    {{0x7f000000, 8}, {0x0a000000, 8}, {0xac100000, 12}, {0xc0a80000, 16}, {0xa9fe0000, 16}}};

bool IsPrivate(const in_addr& address) {
  const uint32_t bits = ntohl(address.s_addr);
  for (const Ipv4Network& network : kPrivateNetworks) {
    if ((bits ^ network.address) >> (32 - network.prefix_bits) == 0) {
      return true;
    }
  }
  return false;
}

bool IsPrivate(const in6_addr& address) {
  return IN6_IS_ADDR_LOOPBACK(&address) || IN6_IS_ADDR_LINKLOCAL(&address) ||
         (address.s6_addr[0] & 0xfe) == 0xfc;
}

absl::Status RefusePlaintext(const std::string& host) {
  return absl::PermissionDeniedError(fmt::format(
      "'{}' is no loopback or private address: the control plane carries the join token "
      "and what opens the weights, so it needs TLS there",
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

bool IsPrivateHost(const std::string& host) {
  in_addr v4 = {};
  in6_addr v6 = {};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    return IsPrivate(v4);
  }
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) {
    return IsPrivate(v6);
  }
  return host == "localhost";
}

std::string HostOf(const std::string& target) {
  const size_t colon = target.rfind(':');
  if (colon == std::string::npos) {
    return "";
  }
  const std::string host = target.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    return host.substr(1, host.size() - 2);
  }
  return host.find(':') == std::string::npos ? host : "";
}

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
    return absl::InvalidArgumentError(
        fmt::format("coordinator is '{}'; it must be HOST:PORT", target));
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
