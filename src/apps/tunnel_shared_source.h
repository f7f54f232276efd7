// The memory of another rank of the wind tunnel behind links that cost no core: a read is on its
// way for as long as the links say (tunnel_shared_links.h), then its bytes are copied.
//
// The copy is the one thing that this machine's core does and a copy engine would do elsewhere.
//
// Thread safety, ownership: fabric/byte_source.h; links outlive the source.
// Errors of a read: ERANGE for bytes that the peer does not hold out, ECONNRESET when it is gone.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "apps/tunnel_shared_links.h"
#include "base/status.h"
#include "fabric/byte_source.h"

namespace zp::apps {

// Memory of a process that others may read: object 0 of a source.
struct HeldOutMemory {
  pid_t pid = 0;
  uint64_t address = 0;
  uint64_t bytes = 0;

  static HeldOutMemory Of(std::span<const std::byte> bytes);  // of this process
  std::string ToText() const;
  static absl::StatusOr<HeldOutMemory> FromText(const std::string& text);
};

std::unique_ptr<fabric::ByteSource> MakeSharedSource(const HeldOutMemory& memory,
                                                     SharedLinks& links,
                                                     int32_t holding_rank,
                                                     int32_t reading_rank);

}  // namespace zp::apps
