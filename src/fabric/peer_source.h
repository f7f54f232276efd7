// Reads slices of the memory of another process, which a MemoryServer there holds out.
//
// Nothing connects before the first Start, and a lost peer is connected to anew by the next one.
// After Abandon, or when the peer is lost, nothing is written to a destination any more once its
// completion has come through Poll: the caller may give the memory to something else.
//
// Thread safety, ownership: byte_source.h.
// Errors of a read: ECONNREFUSED, ECONNRESET and the like when the peer is not there or goes away
// (it also drops who asks for what it does not have), EPROTO when it sends what was not asked for.
// A peer that merely says nothing ends no read: the caller has the clock, and Abandon.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "fabric/byte_source.h"

namespace zp::fabric {

struct PeerSourceOptions {
  int32_t depth = 8;  // reads in flight
};

// `advertisement` is MemoryServer::advertisement() of the peer; it names the transport.
// Errors: InvalidArgument for an advertisement that is none or a depth outside 1..64; Unavailable
// where this machine lacks the transport.
absl::StatusOr<std::unique_ptr<ByteSource>> OpenPeerSource(const std::string& advertisement,
                                                           const PeerSourceOptions& options = {});

}  // namespace zp::fabric
