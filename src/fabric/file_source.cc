#include "fabric/file_source.h"

#include "base/logging.h"
#include "fabric/open_files.h"
#include "fabric/thread_file_source.h"
#include "fabric/uring_file_source.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

constexpr int32_t kMaxDepth = 1024;

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(std::span<const std::string> paths,
                                                           const FileSourceOptions& options) {
  if (options.depth < 1 || options.depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        fmt::format("depth must be 1..{}, not {}", kMaxDepth, options.depth));
  }
  ZP_ASSIGN_OR_RETURN(OpenFiles files, OpenFiles::Open(paths, options.use_direct_io));
  if (options.use_direct_io && !files.is_direct) {
    base::log::info("{}: no direct I/O here, reading through the page cache", files.name);
  }
  if (options.use_io_uring) {
    absl::StatusOr<std::unique_ptr<ByteSource>> source = MakeUringFileSource(files, options.depth);
    if (source.ok()) {
      return source;
    }
    base::log::info("{}: {}; reading with {} threads",
                    files.name,
                    base::MessageOf(source.status()),
                    options.depth);
  }
  return MakeThreadFileSource(std::move(files), options.depth);
}

}  // namespace zp::fabric
