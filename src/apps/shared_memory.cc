#include "apps/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "fmt/format.h"

namespace zp::apps {

SharedMemory::SharedMemory(fabric::Descriptor descriptor, std::string path)
    : descriptor_(std::move(descriptor)), path_(std::move(path)) {}

SharedMemory::~SharedMemory() {
  if (!bytes_.empty()) {
    munmap(bytes_.data(), bytes_.size());
  }
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Create(size_t bytes) {
  fabric::Descriptor descriptor(memfd_create("zeroprefill", MFD_CLOEXEC));
  if (!descriptor.is_open() || ftruncate(descriptor.number(), static_cast<off_t>(bytes)) != 0) {
    return absl::ErrnoToStatus(errno, "shared memory");
  }
  std::string path = fmt::format("/proc/{}/fd/{}", getpid(), descriptor.number());
  std::unique_ptr<SharedMemory> memory(new SharedMemory(std::move(descriptor), std::move(path)));
  ZP_RETURN_IF_ERROR(memory->Map(bytes));
  return memory;
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Open(const std::string& path) {
  fabric::Descriptor descriptor(open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct stat about = {};
  if (!descriptor.is_open() || fstat(descriptor.number(), &about) != 0) {
    return absl::ErrnoToStatus(errno, path);
  }
  std::unique_ptr<SharedMemory> memory(new SharedMemory(std::move(descriptor), path));
  ZP_RETURN_IF_ERROR(memory->Map(static_cast<size_t>(about.st_size)));
  return memory;
}

absl::Status SharedMemory::Map(size_t bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_.number(), 0);
  if (mapped == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, path_);
  }
  bytes_ = {static_cast<std::byte*>(mapped), bytes};
  return absl::OkStatus();
}

}  // namespace zp::apps
