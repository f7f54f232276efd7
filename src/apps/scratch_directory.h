// A directory for files that are of no use once whoever made them is done.
//
// Ownership: it goes, with all in it, when the object does.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "base/status.h"
#include "fmt/format.h"

namespace zp::apps {

class ScratchDirectory {
 public:
  ScratchDirectory() = default;  // none
  // A new one among the system's temporary files, with `name` in its own. Errors: Internal.
  static absl::StatusOr<ScratchDirectory> Create(const std::string& name) {
    namespace fs = std::filesystem;
    std::string path = (fs::temp_directory_path() / ("zeroprefill_" + name + "_XXXXXX")).string();
    if (mkdtemp(path.data()) == nullptr) {
      return absl::InternalError(fmt::format("{}: cannot be made", path));
    }
    ScratchDirectory directory;
    directory.path_ = std::move(path);
    return directory;
  }
  ScratchDirectory(ScratchDirectory&& other) noexcept { *this = std::move(other); }
  ScratchDirectory& operator=(ScratchDirectory&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~ScratchDirectory() {
    if (!path_.empty()) {
      std::error_code ignored;
      std::filesystem::remove_all(path_, ignored);
    }
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace zp::apps
