// File descriptors with an owner.
//
// Thread safety: Signal from any thread; everything else as for a plain int.
// Ownership: both close what they hold.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace zp::fabric {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { Close(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }
  bool is_open() const { return number_ >= 0; }
  void Close() {
    if (is_open()) {
      close(std::exchange(number_, -1));
    }
  }

 private:
  int number_ = -1;
};

// An eventfd: a doorbell that poll() can wait for.
class EventDescriptor {
 public:
  EventDescriptor() : descriptor_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    ZP_CHECK(descriptor_.is_open()) << "eventfd: " << std::strerror(errno);
  }

  int number() const { return descriptor_.number(); }
  void Signal() {
    const uint64_t one = 1;
    ZP_CHECK(write(number(), &one, sizeof(one)) == sizeof(one)) << std::strerror(errno);
  }
  // After this, number() is not readable until the next Signal.
  void Clear() {
    uint64_t count = 0;
    ZP_CHECK(read(number(), &count, sizeof(count)) == sizeof(count) || errno == EAGAIN)
        << std::strerror(errno);
  }

 private:
  Descriptor descriptor_;
};

}  // namespace zp::fabric
