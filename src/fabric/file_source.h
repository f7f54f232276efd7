// Reads slices of files: object i is the i-th file of a list.
//
// With io_uring the kernel reads straight into the destination, past the page cache; where io_uring
// is forbidden (some containers) a few threads do the same with pread; where a file system knows no
// direct I/O, its files go through the page cache. Both are said once in the log.
//
// Thread safety, ownership: byte_source.h. The files stay open as long as the source lives.
// Errors of a read: what the kernel says (EIO, ...), ENODATA where the file ends before the slice
// does, ENOENT for an object that is not in the list.
//
// Abandon ends queued reads at once; one that the device is already working on ends when the device
// answers, since nothing but that stops it from writing to memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "fabric/byte_source.h"

namespace zp::fabric {

struct FileSourceOptions {
  int32_t depth = 8;          // reads in flight; docs/performance.md shows what more would bring
  bool use_direct_io = true;  // false: through the page cache
  bool use_io_uring = true;   // false: threads with pread
};

// Errors: InvalidArgument for an empty list or a depth outside 1..1024; NotFound, PermissionDenied
// and the like with the path of the file that cannot be opened.
absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(std::span<const std::string> paths,
                                                           const FileSourceOptions& options = {});

}  // namespace zp::fabric
