#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/logging.h"

namespace zp::base {
namespace {

// A worker spins this often before it sleeps: a forward pass hands out work every few tens of
// microseconds, and a sleeping thread needs about as long to wake.
constexpr int kSpinCount = 20'000;

// A core that the process may not use leaves the thread where it is.
void PinThisThread(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (pthread_setaffinity_np(pthread_self(), sizeof(set), &set) != 0) {
    log::warn("core {} cannot be used by this process", cpu);
  }
}

}  // namespace

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int64_t> next_index{0};
  std::atomic<int> busy_workers{0};
  std::atomic<bool> stopping{false};
  int64_t count = 0;
  const absl::FunctionRef<void(int64_t, int)>* task = nullptr;
  std::vector<std::jthread> threads;

  void Drain(int worker) {
    while (true) {
      const int64_t index = next_index.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) {
        return;
      }
      (*task)(index, worker);
    }
  }

  void WaitForGeneration(uint64_t seen) {
    for (int spin = 0; spin < kSpinCount; ++spin) {
      if (generation.load(std::memory_order_acquire) != seen) {
        return;
      }
      __builtin_ia32_pause();
    }
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
  }

  void WorkerLoop(int worker) {
    uint64_t seen = 0;
    while (true) {
      WaitForGeneration(seen);
      ++seen;
      if (stopping.load(std::memory_order_acquire)) {
        return;
      }
      Drain(worker);
      busy_workers.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void Publish() {
    {
      std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_acq_rel);
    }
    wake.notify_all();
  }
};

ThreadPool::ThreadPool(int thread_count, std::vector<int> cpus)
    : thread_count_(thread_count), state_(std::make_unique<State>()) {
  ZP_CHECK(thread_count >= 1) << thread_count;
  ZP_CHECK(cpus.empty() || static_cast<int>(cpus.size()) >= thread_count) << cpus.size();
  caller_cpu_ = cpus.empty() ? -1 : cpus[0];
  for (int worker = 1; worker < thread_count; ++worker) {
    const int cpu = cpus.empty() ? -1 : cpus[worker];
    state_->threads.emplace_back([state = state_.get(), worker, cpu] {
      if (cpu >= 0) {
        PinThisThread(cpu);
      }
      state->WorkerLoop(worker);
    });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true, std::memory_order_release);
  state_->Publish();
}

void ThreadPool::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t, int)> task) {
  if (caller_cpu_ >= 0) {
    PinThisThread(std::exchange(caller_cpu_, -1));
  }
  if (count <= 0) {
    return;
  }
  State& state = *state_;
  if (thread_count_ == 1 || count == 1) {
    for (int64_t index = 0; index < count; ++index) {
      task(index, 0);
    }
    return;
  }
  state.count = count;
  state.task = &task;
  state.next_index.store(0, std::memory_order_relaxed);
  state.busy_workers.store(thread_count_ - 1, std::memory_order_relaxed);
  state.Publish();
  state.Drain(0);
  int spin = 0;
  while (state.busy_workers.load(std::memory_order_acquire) != 0) {
    if (++spin < kSpinCount) {
      __builtin_ia32_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace zp::base
