#include "apps/process_memory.h"

#include <limits.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>

#include "fmt/format.h"

namespace zp::apps {
namespace {

// As many as one call takes.
struct Pieces {
  std::array<iovec, IOV_MAX> pieces;
  size_t count = 0;

  bool is_full() const { return count == pieces.size(); }
  void Add(std::byte* begin, size_t bytes) {
    if (count > 0) {
      iovec& last = pieces[count - 1];
      if (static_cast<std::byte*>(last.iov_base) + last.iov_len == begin) {
        last.iov_len += bytes;
        return;
      }
    }
    pieces[count++] = {begin, bytes};
  }
};

// A place in a list of pieces.
class Cursor {
 public:
  explicit Cursor(std::span<const iovec> pieces) : pieces_(pieces) { SkipEmpty(); }

  bool is_at_end() const { return next_ == pieces_.size(); }
  size_t rest_bytes() const { return pieces_[next_].iov_len - offset_; }
  std::byte* Take(size_t bytes) {
    auto* const begin = static_cast<std::byte*>(pieces_[next_].iov_base) + offset_;
    offset_ += bytes;
    SkipEmpty();
    return begin;
  }

 private:
  void SkipEmpty() {
    while (!is_at_end() && rest_bytes() == 0) {
      ++next_;
      offset_ = 0;
    }
  }

  const std::span<const iovec> pieces_;
  size_t next_ = 0;
  size_t offset_ = 0;
};

}  // namespace

void AllowReaders() { prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); }

absl::Status ReadProcess(pid_t pid, std::span<const iovec> from, std::span<const iovec> to) {
  Cursor source(from);
  Cursor target(to);
  while (!source.is_at_end() && !target.is_at_end()) {
    Pieces remote;
    Pieces local;
    size_t bytes = 0;
    while (!source.is_at_end() && !target.is_at_end() && !remote.is_full() && !local.is_full()) {
      const size_t part = std::min(source.rest_bytes(), target.rest_bytes());
      remote.Add(source.Take(part), part);
      local.Add(target.Take(part), part);
      bytes += part;
    }
    const ssize_t count = process_vm_readv(
        pid, local.pieces.data(), local.count, remote.pieces.data(), remote.count, 0);
    if (count != static_cast<ssize_t>(bytes)) {
      return count < 0 && errno == ESRCH
                 ? absl::NotFoundError(fmt::format("process {} is gone", pid))
                 : absl::ErrnoToStatus(count < 0 ? errno : EFAULT,
                                       fmt::format("memory of process {}", pid));
    }
  }
  return source.is_at_end() && target.is_at_end()
             ? absl::OkStatus()
             : absl::InvalidArgumentError("the pieces are of different length in all");
}

}  // namespace zp::apps
