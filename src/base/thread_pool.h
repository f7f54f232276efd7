// The compute threads of one rank.
//
// Thread safety: ParallelFor is called from one thread at a time (the rank's engine thread), which
// works along as worker 0. Not reentrant: a task must not call ParallelFor. Ownership: the pool
// owns its threads; they are joined by the destructor.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"

namespace zp::base {

class ThreadPool {
 public:
  // REQUIRES: thread_count >= 1. `thread_count` includes the calling thread. Worker i keeps to the
  // core cpus[i]; the thread that calls ParallelFor is put on its own by the first call. Empty: the
  // system places them.
  explicit ThreadPool(int thread_count, std::vector<int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int thread_count() const { return thread_count_; }

  // Runs task(index, worker) for every index in [0, count), handed out one by one in rising order
  // to whichever worker is free, and returns when all are done. `worker` in [0, thread_count) names
  // the thread: use it to pick scratch memory. Which worker runs an index is not fixed, so a task's
  // result must not depend on it.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t index, int worker)> task);

 private:
  struct State;
  const int thread_count_;
  int caller_cpu_ = -1;  // where the calling thread is to be put yet; -1: nowhere
  std::unique_ptr<State> state_;
};

}  // namespace zp::base
