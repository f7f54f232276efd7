// Does tasks one after the other, in the order in which they are handed over: on a thread of its
// own, or at once where they are handed over.
//
// Ranks that exchange messages must do the same steps in the same order; whoever computes between
// two steps hands them to the courier and goes on.
//
// Thread safety: one owner calls Post and Await. What a task writes may be read after its Await.
// Ownership: the destructor does what is left and joins the thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "base/status.h"

namespace zp::model {

class Courier {
 public:
  using Task = std::function<absl::Status()>;

  explicit Courier(bool has_thread);
  ~Courier();
  Courier(const Courier&) = delete;
  Courier& operator=(const Courier&) = delete;

  // After the first task that fails none is done any more.
  uint64_t Post(Task task);
  // Until the task that Post numbered so is done; the first failure, if there was one by then.
  absl::Status Await(uint64_t number);

 private:
  void DoTasks();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;  // the first is being done
  uint64_t posted_count_ = 0;
  uint64_t done_count_ = 0;
  absl::Status failure_;
  bool is_closing_ = false;
  std::thread thread_;  // last: everything it uses is there before it starts
};

}  // namespace zp::model
