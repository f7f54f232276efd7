// Makes memory of this process readable for peers (peer_source.h is the other end).
//
// The regions are only read, never written. Whoever has the advertisement can read all of them, so
// it travels over the control plane and is no more public than what it opens.
//
// Thread safety: construct and destroy from one thread; advertisement() from any. A thread of the
// server's own answers peers. Ownership: the regions are the caller's, unchanged and in place until
// the server is destroyed; after that no peer reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"

namespace zp::fabric {

struct MemoryRegion {
  uint32_t object = 0;  // what peers call it
  std::span<const std::byte> bytes = {};
};

enum class PeerTransport {
  kTcp,  // the kernel's TCP; docs/decisions/0014 has the figures
  kUcx,  // RDMA, and TCP where there is none; for fabrics whose members are trusted
};

struct MemoryServerOptions {
  // A numeric address or the name of an interface; it is the only one that is listened on.
  std::string address = "127.0.0.1";
  uint16_t port = 0;  // 0: any that is free
  PeerTransport transport = PeerTransport::kTcp;
};

class MemoryServer {
 public:
  virtual ~MemoryServer() = default;

  // What a peer needs to read from here: opaque bytes, not text.
  virtual const std::string& advertisement() const = 0;
};

// Errors: InvalidArgument for an address that is not this machine's or two regions of one object;
// AlreadyExists for a port in use; Unavailable where the transport is.
absl::StatusOr<std::unique_ptr<MemoryServer>> ServeMemory(std::span<const MemoryRegion> regions,
                                                          const MemoryServerOptions& options);

}  // namespace zp::fabric
