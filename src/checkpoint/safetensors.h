// One safetensors file, mapped read-only.
//
// Thread safety: immutable after Open; everything may be called from many threads.
// Ownership: the views point into the mapping, which lives as long as the SafetensorsFile. The file
// must not be cut short while it is open (the system would raise SIGBUS).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "checkpoint/checkpoint.h"

namespace zp::checkpoint {

struct Fp8Tensor {
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

class SafetensorsFile {
 public:
  // Maps `path` and checks its whole header (safetensors_header.h); reads no tensor.
  // Errors: NotFound, or InvalidArgument with the file, the tensor, what was expected and found.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  // Those of 8-bit numbers (F8_E4M3), which are no weights without their scales.
  const std::map<std::string, Fp8Tensor, std::less<>>& fp8_tensors() const { return fp8_tensors_; }
  // nullptr where the file has no tensor of this name.
  const TensorView* Find(std::string_view name) const;

  bool Holds(std::span<const std::byte> bytes) const;
  // Says that `bytes` (of this file) are about to be read, and probably what follows them: starts
  // reading ahead, without waiting.
  void ReadAhead(std::span<const std::byte> bytes) const;

 private:
  SafetensorsFile(std::string path, const std::byte* data, size_t size_bytes);
  absl::Status ReadHeader();

  const std::string path_;
  const std::byte* const data_;
  const size_t size_bytes_;
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, Fp8Tensor, std::less<>> fp8_tensors_;
  // File range whose reading was last started. Two threads may mix their halves: it is a hint.
  mutable std::atomic<size_t> ahead_begin_{0};
  mutable std::atomic<size_t> ahead_end_{0};
};

// Unmaps the whole pages within `bytes` from this process; reading them again brings them back.
void ReleasePages(std::span<const std::byte> bytes);

}  // namespace zp::checkpoint
