// Numeric addresses and the interfaces of this machine.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "base/status.h"

namespace zp::fabric {

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t size_bytes = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }

  // Errors: InvalidArgument for what is no numeric address.
  static absl::StatusOr<SocketAddress> Parse(const std::string& host, uint16_t port);
};

// The numeric address of an interface ("eth0", IPv4 first), or the address itself if it is one.
// Errors: InvalidArgument for what is neither, and for 0.0.0.0 and ::, which no peer can dial.
absl::StatusOr<std::string> HostOfInterface(const std::string& address_or_interface);

// This machine's address on the way to `host`, a name or an address. Nothing is sent.
// Errors: NotFound for a name that nobody knows, Unavailable where no route leads.
absl::StatusOr<std::string> OwnHostTowards(const std::string& host);

// The port that the socket got.
uint16_t PortOf(int socket);

}  // namespace zp::fabric
