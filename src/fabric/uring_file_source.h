// The file source that hands its reads to the kernel by io_uring.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "fabric/byte_source.h"
#include "fabric/open_files.h"

namespace zp::fabric {

// Errors: Unavailable where the system gives no ring; `files` is then untouched.
absl::StatusOr<std::unique_ptr<ByteSource>> MakeUringFileSource(OpenFiles& files, int32_t depth);

}  // namespace zp::fabric
