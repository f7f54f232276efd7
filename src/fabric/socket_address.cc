#include "fabric/socket_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "fabric/descriptor.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

std::string HostOf(const sockaddr* address, socklen_t size_bytes) {
  char host[NI_MAXHOST];
  return getnameinfo(address, size_bytes, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) == 0
             ? host
             : "";
}

}  // namespace

absl::StatusOr<SocketAddress> SocketAddress::Parse(const std::string& host, uint16_t port) {
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return absl::InvalidArgumentError(fmt::format("\"{}\" is no numeric address", host));
  }
  SocketAddress address;
  address.size_bytes = found->ai_addrlen;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return address;
}

absl::StatusOr<std::string> HostOfInterface(const std::string& address_or_interface) {
  if (address_or_interface == "0.0.0.0" || address_or_interface == "::") {
    return absl::InvalidArgumentError(
        fmt::format("address {} stands for all interfaces; name one", address_or_interface));
  }
  if (SocketAddress::Parse(address_or_interface, 0).ok()) {
    return address_or_interface;
  }
  ifaddrs* all = nullptr;
  getifaddrs(&all);
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(all, freeifaddrs);
  for (const int family : {AF_INET, AF_INET6}) {
    for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
      if (one->ifa_addr != nullptr && one->ifa_addr->sa_family == family &&
          address_or_interface == one->ifa_name) {
        return HostOf(one->ifa_addr,
                      family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
      }
    }
  }
  return absl::InvalidArgumentError(fmt::format(
      "\"{}\" is neither a numeric address nor an interface with one", address_or_interface));
}

absl::StatusOr<std::string> OwnHostTowards(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;  // to connect one chooses a route and no more
  addrinfo* found = nullptr;
  constexpr const char* kAnyPort = "9";
  if (const int error = getaddrinfo(host.c_str(), kAnyPort, &hints, &found); error != 0) {
    return absl::NotFoundError(fmt::format("host '{}': {}", host, gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  const Descriptor route(socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_storage own = {};
  socklen_t size_bytes = sizeof(own);
  if (!route.is_open() || connect(route.number(), found->ai_addr, found->ai_addrlen) != 0 ||
      getsockname(route.number(), reinterpret_cast<sockaddr*>(&own), &size_bytes) != 0) {
    return absl::UnavailableError(
        fmt::format("host '{}' cannot be reached: {}", host, std::strerror(errno)));
  }
  return HostOf(reinterpret_cast<const sockaddr*>(&own), size_bytes);
}

uint16_t PortOf(int socket) {
  sockaddr_storage storage = {};
  socklen_t size_bytes = sizeof(storage);
  getsockname(socket, reinterpret_cast<sockaddr*>(&storage), &size_bytes);
  return ntohs(storage.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port
                   : reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

}  // namespace zp::fabric
