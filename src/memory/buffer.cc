#include "memory/buffer.h"

#include <sys/mman.h>

#include <mutex>
#include <utility>

#include "base/check.h"

namespace zp::memory {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kHugePageBytes = size_t{2} << 20;

struct Ledger {
  std::mutex mutex;
  std::map<std::string, size_t> bytes_by_tag;

  void Add(const char* tag, size_t size_bytes) {
    std::lock_guard lock(mutex);
    bytes_by_tag[tag] += size_bytes;
  }
  void Remove(const char* tag, size_t size_bytes) {
    std::lock_guard lock(mutex);
    bytes_by_tag[tag] -= size_bytes;
  }
};

Ledger& GlobalLedger() {
  static Ledger& ledger = *new Ledger;  // outlives every static Buffer
  return ledger;
}

size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// An anonymous mapping whose start is aligned to `alignment`: maps more, then gives the ends back.
std::byte* MapAligned(size_t mapped_bytes, size_t alignment) {
  const size_t request_bytes = mapped_bytes + (alignment > kPageBytes ? alignment : 0);
  void* address = mmap(nullptr,
                       request_bytes,
                       PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1,
                       0);
  ZP_CHECK(address != MAP_FAILED) << "out of address space for " << request_bytes << " bytes";
  auto* begin = static_cast<std::byte*>(address);
  const auto address_bits = reinterpret_cast<size_t>(begin);
  const size_t head_bytes = RoundUp(address_bits, alignment) - address_bits;
  std::byte* const aligned = begin + head_bytes;
  if (head_bytes > 0) {
    munmap(begin, head_bytes);
  }
  if (const size_t tail_bytes = request_bytes - head_bytes - mapped_bytes; tail_bytes > 0) {
    munmap(aligned + mapped_bytes, tail_bytes);
  }
  return aligned;
}

}  // namespace

Buffer::Buffer(size_t size_bytes, const char* tag) : size_bytes_(size_bytes), tag_(tag) {
  if (size_bytes == 0) {
    return;
  }
  const bool huge = size_bytes >= kHugePageBytes;
  mapped_bytes_ = RoundUp(size_bytes, huge ? kHugePageBytes : kPageBytes);
  data_ = MapAligned(mapped_bytes_, huge ? kHugePageBytes : kPageBytes);
  if (huge) {
    madvise(
        data_, mapped_bytes_, MADV_HUGEPAGE);  // a wish: without huge pages everything still works
  }
  GlobalLedger().Add(tag_, mapped_bytes_);
}

Buffer::~Buffer() {
  if (data_ != nullptr) {
    munmap(data_, mapped_bytes_);
    GlobalLedger().Remove(tag_, mapped_bytes_);
  }
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(tag_, other.tag_);
  return *this;
}

void Buffer::EnsureBytes(size_t size_bytes, const char* tag) {
  if (size_bytes > size_bytes_) {
    *this = Buffer();
    *this = Buffer(size_bytes, tag);
  }
}

std::map<std::string, size_t> TaggedBytes() {
  Ledger& ledger = GlobalLedger();
  std::lock_guard lock(ledger.mutex);
  return ledger.bytes_by_tag;
}

}  // namespace zp::memory
