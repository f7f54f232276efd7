#include "checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "checkpoint/safetensors_header.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr size_t kPageBytes = 4096;
constexpr size_t kLengthBytes = sizeof(uint64_t);
// Meant to keep a disk busy while a tensor is packed; not tuned by measurement.
constexpr size_t kReadAheadBytes = size_t{64} << 20;

absl::Status SystemError(const std::string& path, const char* what) {
  const int error = errno;
  const std::string message = fmt::format("{}: cannot {}: {}", path, what, std::strerror(error));
  return error == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int descriptor) : descriptor_(descriptor) {}
  ~FileDescriptor() {
    if (descriptor_ >= 0) {
      close(descriptor_);
    }
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return descriptor_; }

 private:
  const int descriptor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) {
    return SystemError(path, "open");
  }
  struct stat status = {};
  if (fstat(file.get(), &status) != 0) {
    return SystemError(path, "stat");
  }
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(fmt::format("{}: is not a regular file", path));
  }
  const size_t size_bytes = status.st_size;
  if (size_bytes < kLengthBytes) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: a safetensors file begins with the {} bytes of its header's length, but this file "
        "has {} bytes",
        path,
        kLengthBytes,
        size_bytes));
  }
  void* data = mmap(nullptr, size_bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) {
    return SystemError(path, "map");
  }
  std::unique_ptr<SafetensorsFile> result(
      new SafetensorsFile(path, static_cast<const std::byte*>(data), size_bytes));
  ZP_RETURN_IF_ERROR(result->ReadHeader());
  return result;
}

SafetensorsFile::SafetensorsFile(std::string path, const std::byte* data, size_t size_bytes)
    : path_(std::move(path)), data_(data), size_bytes_(size_bytes) {}

SafetensorsFile::~SafetensorsFile() { munmap(const_cast<std::byte*>(data_), size_bytes_); }

absl::Status SafetensorsFile::ReadHeader() {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data_, kLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the header says it is {} bytes long, the limit is {}: this is no "
                    "safetensors file",
                    path_,
                    header_bytes,
                    kMaxHeaderBytes));
  }
  const size_t content_bytes = size_bytes_ - kLengthBytes;
  if (header_bytes > content_bytes) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: the header says it is {} bytes long, but only {} bytes follow: the file is truncated",
        path_,
        header_bytes,
        content_bytes));
  }
  const std::string_view header(reinterpret_cast<const char*>(data_ + kLengthBytes), header_bytes);
  const std::byte* data_section = data_ + kLengthBytes + header_bytes;
  ZP_ASSIGN_OR_RETURN(std::vector<HeaderEntry> entries,
                      ParseSafetensorsHeader(header, content_bytes - header_bytes, path_));
  for (HeaderEntry& entry : entries) {
    const std::byte* begin = data_section + entry.begin;
    if (entry.dtype.has_value() &&
        reinterpret_cast<uintptr_t>(begin) % spec::SizeOf(*entry.dtype) != 0) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor '{}' begins at byte {} of the file, which is no multiple of the "
                      "{} bytes of a {} number",
                      path_,
                      entry.name,
                      begin - data_,
                      spec::SizeOf(*entry.dtype),
                      spec::NameOf(*entry.dtype)));
    }
    const std::span bytes(begin, entry.end - entry.begin);
    if (entry.dtype.has_value()) {
      tensors_.emplace(std::move(entry.name),
                       TensorView{*entry.dtype, std::move(entry.shape), bytes});
    } else {
      fp8_tensors_.emplace(std::move(entry.name), Fp8Tensor{std::move(entry.shape), bytes});
    }
  }
  return absl::OkStatus();
}

const TensorView* SafetensorsFile::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

bool SafetensorsFile::Holds(std::span<const std::byte> bytes) const {
  return data_ <= bytes.data() && bytes.data() + bytes.size() <= data_ + size_bytes_;
}

void SafetensorsFile::ReadAhead(std::span<const std::byte> bytes) const {
  const size_t begin = bytes.data() - data_;
  const size_t end = begin + bytes.size();
  const size_t ahead_end = ahead_end_.load(std::memory_order_relaxed);
  const bool started = ahead_begin_.load(std::memory_order_relaxed) <= begin && end <= ahead_end;
  const bool half_left = end + kReadAheadBytes / 2 <= ahead_end || ahead_end == size_bytes_;
  if (started && half_left) {
    return;
  }
  const size_t new_begin = begin / kPageBytes * kPageBytes;
  const size_t new_end = std::min(std::max(begin + kReadAheadBytes, end), size_bytes_);
  ahead_begin_.store(new_begin, std::memory_order_relaxed);
  ahead_end_.store(new_end, std::memory_order_relaxed);
  madvise(const_cast<std::byte*>(data_) + new_begin, new_end - new_begin, MADV_WILLNEED);
}

void ReleasePages(std::span<const std::byte> bytes) {
  const auto first = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t begin = (first + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uintptr_t end = (first + bytes.size()) / kPageBytes * kPageBytes;
  if (begin < end) {
    auto* const first_page = const_cast<std::byte*>(bytes.data()) + (begin - first);
    madvise(first_page, end - begin, MADV_DONTNEED);
  }
}

}  // namespace zp::checkpoint
