// The file source for systems without io_uring: one thread for each read in flight, with pread.
#pragma once

#include <cstdint>
#include <memory>

#include "fabric/byte_source.h"
#include "fabric/open_files.h"

namespace zp::fabric {

std::unique_ptr<ByteSource> MakeThreadFileSource(OpenFiles files, int32_t depth);

}  // namespace zp::fabric
