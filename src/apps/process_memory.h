// Reads the memory of another process of this machine: one copy, from where the bytes lie to where
// they belong, of which the other process does nothing.
//
// Thread safety: free functions, no shared state. Ownership: the destinations are the caller's.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <span>

#include "base/status.h"

namespace zp::apps {

// Lets other processes of the same user read this one, where the system asks for that.
void AllowReaders();

// An address of the other process, as ReadProcess takes it: never to be read here.
inline void* AddressThere(uint64_t address) {
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr)
}

// `from`, addresses of process `pid`, to `to`; the pieces may be cut differently.
// Errors: InvalidArgument if the lengths differ, NotFound if the process is gone, else the
// system's; what was written to `to` then is undefined.
absl::Status ReadProcess(pid_t pid, std::span<const iovec> from, std::span<const iovec> to);

}  // namespace zp::apps
