// Memory that a process and those that it starts map alike. It has no name in the file system: it
// goes with the last process that maps it.
//
// Thread safety: as plain memory. Ownership: the object owns this process' mapping; Create's also
// what path() leads to.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "fabric/descriptor.h"

namespace zp::apps {

class SharedMemory {
 public:
  // Zeros. Errors: the system's.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Create(size_t bytes);
  // `path` as path() of the process that made it, which still runs.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Open(const std::string& path);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  std::span<std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

 private:
  SharedMemory(fabric::Descriptor descriptor, std::string path);
  absl::Status Map(size_t bytes);

  const fabric::Descriptor descriptor_;
  const std::string path_;
  std::span<std::byte> bytes_;
};

}  // namespace zp::apps
