// Big memory with a name: every buffer carries a tag, so that each byte shows up under its owner in
// the metrics.
//
// Thread safety: TaggedBytes() from any thread; one Buffer is used by one owner at a time.
// Ownership: a Buffer owns its pages, moves, and is never copied.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>

namespace zp::memory {

class Buffer {
 public:
  Buffer() = default;
  // Zero-filled pages, aligned to 4 KiB (2 MiB and backed by huge pages where the system grants
  // them, for large ones). Physical memory is taken at the first touch. `tag` must be a string
  // literal.
  Buffer(size_t size_bytes, const char* tag);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }
  bool empty() const { return size_bytes_ == 0; }
  std::span<std::byte> bytes() const { return {data_, size_bytes_}; }

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

  // Makes the buffer at least `size_bytes` large; contents are lost if it has to grow.
  void EnsureBytes(size_t size_bytes, const char* tag);

 private:
  std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
  size_t mapped_bytes_ = 0;
  const char* tag_ = "";
};

// Bytes held now, by tag.
std::map<std::string, size_t> TaggedBytes();

}  // namespace zp::memory
