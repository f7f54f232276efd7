#include "checkpoint/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

absl::Status SystemError(const std::string& path, const char* what) {
  const int error = errno;
  const std::string message = fmt::format("{}: cannot {}: {}", path, what, std::strerror(error));
  return error == ENOSPC ? absl::ResourceExhaustedError(message)
                         : absl::InvalidArgumentError(message);
}

absl::Status SyncDirectory(const std::string& directory) {
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    return SystemError(directory, "open");
  }
  absl::Status status = fsync(descriptor) == 0 ? absl::OkStatus() : SystemError(directory, "sync");
  close(descriptor);
  return status;
}

}  // namespace

absl::StatusOr<OutputFile> OutputFile::Create(const std::string& path) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    return SystemError(path, "create");
  }
  return OutputFile(path, descriptor);
}

OutputFile::OutputFile(std::string path, int descriptor)
    : path_(std::move(path)), descriptor_(descriptor) {}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) {
    close(descriptor_);
  }
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

absl::Status OutputFile::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) {
      return SystemError(path_, "write");
    }
    bytes = bytes.subspan(std::max<ssize_t>(written, 0));
  }
  return absl::OkStatus();
}

absl::Status OutputFile::WriteAt(uint64_t offset, std::span<const std::byte> bytes) const {
  const uint64_t begin = offset;
  while (!bytes.empty()) {
    const ssize_t written =
        pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno != EINTR) {
      return SystemError(path_, "write");
    }
    offset += std::max<ssize_t>(written, 0);
    bytes = bytes.subspan(std::max<ssize_t>(written, 0));
  }
  sync_file_range(descriptor_,
                  static_cast<off_t>(begin),
                  static_cast<off_t>(offset - begin),
                  SYNC_FILE_RANGE_WRITE);
  return absl::OkStatus();
}

// Both calls are hints: where they fail, the pages stay, and Sync reports what is really wrong.
void OutputFile::DropPages(uint64_t offset, uint64_t size_bytes) const {
  const auto begin = static_cast<off_t>(offset);
  const auto length = static_cast<off_t>(size_bytes);
  sync_file_range(descriptor_,
                  begin,
                  length,
                  SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  posix_fadvise(descriptor_, begin, length, POSIX_FADV_DONTNEED);
}

absl::Status OutputFile::Sync() const {
  return fdatasync(descriptor_) == 0 ? absl::OkStatus() : SystemError(path_, "sync");
}

absl::Status OutputFile::Close() {
  return close(std::exchange(descriptor_, -1)) == 0 ? absl::OkStatus()
                                                    : SystemError(path_, "close");
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  ZP_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path));
  ZP_RETURN_IF_ERROR(file.Write(text));
  return file.Close();
}

absl::Status RenameDurably(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    return SystemError(from, "rename");
  }
  return SyncDirectory(std::filesystem::path(to).parent_path().string());
}

absl::Status ReplaceFile(const std::string& path, const std::string& text) {
  const std::string new_path = path + ".new";
  ZP_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(new_path));
  ZP_RETURN_IF_ERROR(file.Write(text));
  ZP_RETURN_IF_ERROR(file.Sync());
  ZP_RETURN_IF_ERROR(file.Close());
  return RenameDurably(new_path, path);
}

}  // namespace zp::checkpoint
