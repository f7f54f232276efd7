#include "fabric/open_files.h"

#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "fmt/format.h"

namespace zp::fabric {
namespace {

std::string NameOf(std::span<const std::string> paths) {
  const std::string first = std::filesystem::path(paths.front()).filename();
  return paths.size() == 1 ? fmt::format("file {}", first)
                           : fmt::format("files {} and {} more", first, paths.size() - 1);
}

}  // namespace

absl::StatusOr<OpenFiles> OpenFiles::Open(std::span<const std::string> paths, bool use_direct_io) {
  if (paths.empty()) {
    return absl::InvalidArgumentError("a file source needs at least one file");
  }
  OpenFiles files = {.name = NameOf(paths), .is_direct = use_direct_io};
  for (const std::string& path : paths) {
    Descriptor file(files.is_direct ? open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT) : -1);
    // EINVAL is how a file system says that it knows no direct I/O.
    if (!file.is_open() && (!files.is_direct || errno == EINVAL)) {
      file = Descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC));
      files.is_direct = false;
    }
    if (!file.is_open()) {
      return absl::ErrnoToStatus(errno, fmt::format("cannot open {}", path));
    }
    files.descriptors.push_back(std::move(file));
  }
  return files;
}

}  // namespace zp::fabric
