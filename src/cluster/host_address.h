// Addresses as people write them.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <string>

namespace zp::cluster {

// A numeric address of loopback, a private network (RFC 1918, RFC 4193) or one link, or
// "localhost". The token and the advertisements may cross such a network in plain text.
bool IsPrivateHost(const std::string& host);

// "host:port" or "[v6]:port" without the port; empty for what is neither.
std::string HostOf(const std::string& target);

// The other way round.
std::string TargetOf(const std::string& host, uint16_t port);

}  // namespace zp::cluster
