// A file being written, and what it takes to be sure that it has reached the disk.
//
// Thread safety: one thread; but WriteAt and DropPages may run on many threads at once, for places
// that do not overlap. Ownership: an OutputFile owns its descriptor; what was written stays in the
// file when it is destroyed without Close. Errors: ResourceExhausted for a full disk,
// InvalidArgument otherwise, with the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"

namespace zp::checkpoint {

class OutputFile {
 public:
  // As a number of bytes: up to the end of the file.
  static constexpr uint64_t kToTheEnd = 0;

  // Creates `path`, or empties it.
  static absl::StatusOr<OutputFile> Create(const std::string& path);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;

  // Appends.
  absl::Status Write(std::span<const std::byte> bytes);
  absl::Status Write(const std::string& text) { return Write(std::as_bytes(std::span(text))); }

  // Writes at a place of its own and has the system begin to move the bytes to the disk.
  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> bytes) const;

  // Waits until what was written within the range is on the disk and gives its pages back, so that
  // a file larger than memory pushes nothing else out of the page cache.
  void DropPages(uint64_t offset, uint64_t size_bytes) const;

  // Returns when all that was written is on the disk.
  absl::Status Sync() const;
  absl::Status Close();

 private:
  OutputFile(std::string path, int descriptor);

  std::string path_;
  int descriptor_;
};

absl::Status WriteFile(const std::string& path, const std::string& text);

// Gives a file its final name; returns when the name is on the disk. Sync its bytes first.
absl::Status RenameDurably(const std::string& from, const std::string& to);

// Writes `text` through "<path>.new": after a crash `path` has either its old text or the new one.
absl::Status ReplaceFile(const std::string& path, const std::string& text);

}  // namespace zp::checkpoint
