// Wakes one thread that waits for any of several things to have happened; it looks for itself what.
//
// Thread safety: Notify from any thread, WaitUntil from one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace zp::workplane {

class Signal {
 public:
  void Notify() {
    {
      const std::lock_guard lock(mutex_);
      if (is_set_) {
        return;
      }
      is_set_ = true;
    }
    changed_.notify_one();
  }

  // Until notified, if that has not happened since the last wait, or until `time`.
  void WaitUntil(std::chrono::steady_clock::time_point time) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, time, [this] { return is_set_; });
    is_set_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_set_ = false;
};

}  // namespace zp::workplane
