#include "fabric/thread_file_source.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "fabric/descriptor.h"

namespace zp::fabric {
namespace {

// Direct reads end at a multiple of the device's block, 512 at least, except at the file's end.
constexpr size_t kSmallestBlockBytes = 512;

class ThreadFileSource final : public ByteSource {
 public:
  ThreadFileSource(OpenFiles files, int32_t depth) : files_(std::move(files)), depth_(depth) {
    waiting_.reserve(depth);
    ended_.reserve(depth);
    for (int32_t i = 0; i < depth; ++i) {
      threads_.emplace_back([this](const std::stop_token& stop) { ReadUntilStopped(stop); });
    }
  }
  ~ThreadFileSource() override {
    Abandon();
    threads_.clear();  // joins: nothing writes to destinations after this
  }

  std::string_view name() const override { return files_.name; }
  int32_t max_reads_in_flight() const override { return depth_; }
  void Start(const SliceRead& read) override;
  void Poll(std::vector<SliceDone>& done) override;
  bool Arm() override;
  int event_fd() const override { return event_.number(); }
  void Abandon() override;

 private:
  void ReadUntilStopped(const std::stop_token& stop);
  int Read(const SliceRead& read, uint64_t generation);
  bool IsAbandoned(uint64_t generation);

  const OpenFiles files_;
  const int32_t depth_;
  EventDescriptor event_;
  std::mutex mutex_;  // guards what follows, up to threads_
  std::condition_variable_any has_work_;
  std::vector<SliceRead> waiting_;
  std::vector<SliceDone> ended_;
  int32_t in_flight_ = 0;    // started, not yet fetched by Poll
  uint64_t generation_ = 0;  // rises with each Abandon
  std::vector<std::jthread> threads_;
};

void ThreadFileSource::Start(const SliceRead& read) {
  const std::lock_guard lock(mutex_);
  ZP_CHECK(in_flight_ < depth_) << name() << ": more than " << depth_ << " reads";
  ++in_flight_;
  waiting_.push_back(read);
  has_work_.notify_one();
}

void ThreadFileSource::Poll(std::vector<SliceDone>& done) {
  const std::lock_guard lock(mutex_);
  in_flight_ -= static_cast<int32_t>(ended_.size());
  done.insert(done.end(), ended_.begin(), ended_.end());
  ended_.clear();
}

bool ThreadFileSource::Arm() {
  event_.Clear();  // before looking, so that what comes in between rings again
  const std::lock_guard lock(mutex_);
  return ended_.empty();
}

void ThreadFileSource::Abandon() {
  const std::lock_guard lock(mutex_);
  ++generation_;
  for (SliceDone& done : ended_) {
    done.error = ECANCELED;
  }
  for (const SliceRead& read : waiting_) {
    ended_.push_back({.token = read.token, .error = ECANCELED});
  }
  waiting_.clear();
  event_.Signal();
}

void ThreadFileSource::ReadUntilStopped(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (has_work_.wait(lock, stop, [this] { return !waiting_.empty(); })) {
    const SliceRead read = waiting_.front();
    waiting_.erase(waiting_.begin());  // at most `depth` entries
    const uint64_t generation = generation_;
    lock.unlock();
    const int error = Read(read, generation);
    lock.lock();
    ended_.push_back({.token = read.token, .error = generation == generation_ ? error : ECANCELED});
    event_.Signal();
  }
}

// 0 or an errno value.
int ThreadFileSource::Read(const SliceRead& read, uint64_t generation) {
  const int file = files_.Find(read.object);
  if (file < 0) {
    return ENOENT;
  }
  std::span<std::byte> rest = read.destination;
  uint64_t offset = read.offset;
  while (!rest.empty() && !IsAbandoned(generation)) {
    const ssize_t count = pread(file, rest.data(), rest.size(), static_cast<off_t>(offset));
    if (count < 0 && errno != EINTR) {
      return errno;
    }
    const size_t bytes = static_cast<size_t>(std::max<ssize_t>(count, 0));
    rest = rest.subspan(bytes);
    offset += bytes;
    if (count == 0 || (!rest.empty() && bytes % kSmallestBlockBytes != 0)) {
      return ENODATA;
    }
  }
  return 0;
}

bool ThreadFileSource::IsAbandoned(uint64_t generation) {
  const std::lock_guard lock(mutex_);
  return generation != generation_;
}

}  // namespace

std::unique_ptr<ByteSource> MakeThreadFileSource(OpenFiles files, int32_t depth) {
  return std::make_unique<ThreadFileSource>(std::move(files), depth);
}

}  // namespace zp::fabric
