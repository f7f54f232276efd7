#include "model/courier.h"

#include <utility>

namespace zp::model {

Courier::Courier(bool has_thread) {
  if (has_thread) {
    thread_ = std::thread([this] { DoTasks(); });
  }
}

Courier::~Courier() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      is_closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
}

uint64_t Courier::Post(Task task) {
  if (!thread_.joinable()) {
    if (failure_.ok()) {
      failure_ = task();
    }
    done_count_ = ++posted_count_;
    return posted_count_;
  }
  const std::lock_guard lock(mutex_);
  tasks_.push_back(std::move(task));
  changed_.notify_all();
  return ++posted_count_;
}

absl::Status Courier::Await(uint64_t number) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_count_ >= number; });
  return failure_;
}

void Courier::DoTasks() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return is_closing_ || !tasks_.empty(); });
    if (tasks_.empty()) {
      return;
    }
    const bool is_wanted = failure_.ok();
    const Task task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    const absl::Status status = is_wanted ? task() : absl::OkStatus();
    lock.lock();
    failure_.Update(status);
    ++done_count_;
    changed_.notify_all();
  }
}

}  // namespace zp::model
