// The files behind a file source, opened for reading.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "fabric/descriptor.h"

namespace zp::fabric {

struct OpenFiles {
  std::string name;  // for logs: "file a.zpx", "files a.zpx and 3 more"
  std::vector<Descriptor> descriptors = {};
  bool is_direct = true;  // false: at least one goes through the page cache

  // Errors: InvalidArgument for an empty list; else the reason and the path.
  static absl::StatusOr<OpenFiles> Open(std::span<const std::string> paths, bool use_direct_io);

  // The descriptor of `object`, -1 if there is none.
  int Find(uint32_t object) const {
    return object < descriptors.size() ? descriptors[object].number() : -1;
  }
};

}  // namespace zp::fabric
