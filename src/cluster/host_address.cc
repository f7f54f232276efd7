#include "cluster/host_address.h"

#include <arpa/inet.h>

#include <array>
#include <cstdint>

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

std::string TargetOf(const std::string& host, uint16_t port) {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

}  // namespace zp::cluster
