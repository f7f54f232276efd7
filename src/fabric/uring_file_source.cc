#include "fabric/uring_file_source.h"

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "fabric/descriptor.h"
#include "fmt/format.h"
#include "liburing.h"

namespace zp::fabric {
namespace {

// Direct reads end at a multiple of the device's block, 512 at least, except at the file's end.
constexpr size_t kSmallestBlockBytes = 512;
constexpr uint64_t kCancelUserData = UINT64_MAX;

struct ReadInFlight {
  SliceRead read = {};
  size_t arrived_bytes = 0;
  bool is_in_flight = false;
  bool is_abandoned = false;
};

class UringFileSource final : public ByteSource {
 public:
  // Takes the ring over.
  UringFileSource(OpenFiles files, int32_t depth, const io_uring& ring)
      : files_(std::move(files)), ring_(ring), reads_(depth) {
    ended_.reserve(depth);
    for (uint32_t slot = 0; slot < reads_.size(); ++slot) {
      free_slots_.push_back(slot);
    }
    const int error = io_uring_register_eventfd(&ring_, event_.number());
    ZP_CHECK(error == 0) << std::strerror(-error);
  }
  ~UringFileSource() override;

  std::string_view name() const override { return files_.name; }
  int32_t max_reads_in_flight() const override { return static_cast<int32_t>(reads_.size()); }
  void Start(const SliceRead& read) override;
  void Poll(std::vector<SliceDone>& done) override;
  bool Arm() override;
  int event_fd() const override { return event_.number(); }
  void Abandon() override;

 private:
  void SubmitRest(uint32_t slot);
  void TakeCompletion(uint32_t slot, int result);
  void End(uint32_t slot, int error);

  OpenFiles files_;
  EventDescriptor event_;
  io_uring ring_;
  std::vector<ReadInFlight> reads_;   // the index is the request's user_data
  std::vector<uint32_t> free_slots_;  // into reads_
  std::vector<SliceDone> ended_;      // not yet fetched by Poll
};

UringFileSource::~UringFileSource() {
  Abandon();
  std::vector<SliceDone> done;
  while (free_slots_.size() < reads_.size()) {  // until then the kernel may write to destinations
    io_uring_cqe* completion = nullptr;
    io_uring_submit_and_wait(&ring_, 1);
    io_uring_wait_cqe(&ring_, &completion);
    Poll(done);
  }
  io_uring_queue_exit(&ring_);
}

void UringFileSource::Start(const SliceRead& read) {
  ZP_CHECK(!free_slots_.empty()) << name() << ": more than " << reads_.size() << " reads";
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  reads_[slot] = {.read = read, .is_in_flight = true};
  if (files_.Find(read.object) < 0) {
    return End(slot, ENOENT);
  }
  SubmitRest(slot);
  io_uring_submit(&ring_);  // where the kernel is short of memory, Poll tries again
}

// Queues the part of a slice that has not arrived.
void UringFileSource::SubmitRest(uint32_t slot) {
  const ReadInFlight& in_flight = reads_[slot];
  const std::span<std::byte> rest = in_flight.read.destination.subspan(in_flight.arrived_bytes);
  io_uring_sqe* submission = io_uring_get_sqe(&ring_);
  ZP_CHECK(submission != nullptr) << "the ring holds two entries for each read";
  io_uring_prep_read(submission,
                     files_.Find(in_flight.read.object),
                     rest.data(),
                     static_cast<unsigned>(rest.size()),
                     in_flight.read.offset + in_flight.arrived_bytes);
  io_uring_sqe_set_data64(submission, slot);
  if (!files_.is_direct) {
    // Else the copy out of the page cache would happen here, in Start.
    submission->flags |= IOSQE_ASYNC;
  }
}

void UringFileSource::Poll(std::vector<SliceDone>& done) {
  io_uring_cqe* completion = nullptr;
  while (io_uring_peek_cqe(&ring_, &completion) == 0) {
    const uint64_t user_data = completion->user_data;
    const int result = completion->res;
    io_uring_cqe_seen(&ring_, completion);
    if (user_data != kCancelUserData) {
      TakeCompletion(static_cast<uint32_t>(user_data), result);
    }
  }
  if (io_uring_sq_ready(&ring_) > 0) {
    io_uring_submit(&ring_);
  }
  done.insert(done.end(), ended_.begin(), ended_.end());
  ended_.clear();
}

void UringFileSource::TakeCompletion(uint32_t slot, int result) {
  ReadInFlight& in_flight = reads_[slot];
  if (in_flight.is_abandoned) {
    return End(slot, ECANCELED);
  }
  if (result < 0 && result != -EINTR) {
    return End(slot, -result);
  }
  const size_t bytes = result > 0 ? static_cast<size_t>(result) : 0;
  in_flight.arrived_bytes += bytes;
  if (in_flight.arrived_bytes == in_flight.read.destination.size()) {
    return End(slot, 0);
  }
  if (result == 0 || bytes % kSmallestBlockBytes != 0) {
    return End(slot, ENODATA);
  }
  SubmitRest(slot);
}

void UringFileSource::End(uint32_t slot, int error) {
  ended_.push_back({.token = reads_[slot].read.token, .error = error});
  reads_[slot].is_in_flight = false;
  free_slots_.push_back(slot);
}

bool UringFileSource::Arm() {
  event_.Clear();  // before looking, so that what comes in between rings again
  return ended_.empty() && io_uring_cq_ready(&ring_) == 0 && io_uring_sq_ready(&ring_) == 0;
}

void UringFileSource::Abandon() {
  for (uint32_t slot = 0; slot < reads_.size(); ++slot) {
    if (!reads_[slot].is_in_flight || reads_[slot].is_abandoned) {
      continue;
    }
    reads_[slot].is_abandoned = true;
    io_uring_sqe* submission = io_uring_get_sqe(&ring_);
    ZP_CHECK(submission != nullptr) << "the ring holds two entries for each read";
    io_uring_prep_cancel64(submission, slot, 0);
    io_uring_sqe_set_data64(submission, kCancelUserData);
  }
  io_uring_submit(&ring_);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> MakeUringFileSource(OpenFiles& files, int32_t depth) {
  io_uring ring;
  const int error = io_uring_queue_init(2 * depth, &ring, 0);  // a read and its cancellation
  if (error < 0) {
    return absl::UnavailableError(fmt::format("io_uring: {}", std::strerror(-error)));
  }
  return std::make_unique<UringFileSource>(std::move(files), depth, ring);
}

}  // namespace zp::fabric
