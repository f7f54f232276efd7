// What the tests of this room share: random works, and a rank that answers from a thread of its
// own with what can be computed from the work.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "protocol/rank_report.h"
#include "protocol/work.h"

namespace zp::workplane {

using Random = std::mt19937_64;

inline int64_t Draw(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

inline std::string RandomBytes(Random& random, int64_t most) {
  std::string bytes(Draw(random, 0, most), '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(Draw(random, 0, 255));
  }
  return bytes;
}

inline std::vector<protocol::TokenId> RandomTokens(Random& random, int64_t least, int64_t most) {
  std::vector<protocol::TokenId> tokens(Draw(random, least, most));
  for (protocol::TokenId& token : tokens) {
    token = static_cast<protocol::TokenId>(Draw(random, INT32_MIN, INT32_MAX));
  }
  return tokens;
}

inline protocol::Work RandomWork(Random& random) {
  protocol::Work work = {.request_id = RandomBytes(random, 20),
                         .sequences = {},
                         .cache_salt = RandomBytes(random, 20),
                         .priority = Draw(random, INT64_MIN, INT64_MAX),
                         .is_resent = random() % 2 == 0};
  for (int64_t i = Draw(random, 1, 5); i > 0; --i) {
    protocol::Sequence& sequence = work.sequences.emplace_back();
    sequence.tokens = RandomTokens(random, 1, 40);
    sequence.pooling = static_cast<protocol::Pooling>(Draw(random, 0, 2));
    for (int64_t row = Draw(random, 0, 5); row > 0; --row) {
      const auto last = static_cast<int64_t>(sequence.tokens.size()) - 1;
      sequence.rows.push_back({.position = static_cast<int32_t>(Draw(random, 0, last)),
                               .columns = RandomTokens(random, 0, 6),
                               .full_vocabulary = random() % 2 == 0,
                               .top_count = static_cast<int32_t>(Draw(random, 0, 4))});
    }
  }
  return work;
}

inline protocol::BlockHash Block(uint64_t number) { return {.high = number, .low = ~number}; }

inline protocol::RankReport ReportOf(double flops_per_s,
                                     std::vector<protocol::BlockHash> removed = {},
                                     std::vector<protocol::BlockHash> stored = {}) {
  protocol::RankReport report;
  report.flops_per_s = flops_per_s;
  report.cache.removed = std::move(removed);
  report.cache.stored = std::move(stored);
  return report;
}

// Depends on every field that the engine would look at.
inline protocol::WorkResult AnswerTo(const protocol::Work& work) {
  protocol::WorkResult result;
  for (const protocol::Sequence& sequence : work.sequences) {
    protocol::SequenceResult& answer = result.sequences.emplace_back();
    float sum = 0;
    for (const protocol::TokenId token : sequence.tokens) {
      sum = sum / 3 + static_cast<float>(token);
    }
    if (sequence.pooling != protocol::Pooling::kNone) {
      answer.pooled = {sum, static_cast<float>(sequence.pooling)};
    }
    for (const protocol::RowAsk& ask : sequence.rows) {
      protocol::Row& row = answer.rows.emplace_back();
      for (const protocol::TokenId column : ask.columns) {
        row.column_logits.push_back(static_cast<float>(column) / 7);
      }
      row.log_sum_exp = ask.full_vocabulary ? sum : 0;
      for (int32_t top = 0; top < ask.top_count; ++top) {
        row.top.push_back({.token = ask.position + top, .logit = sum - static_cast<float>(top)});
      }
    }
  }
  result.usage.prompt_tokens = work.token_count();
  return result;
}

class FakeRank final : public protocol::WorkSink {
 public:
  using Answer = std::function<absl::StatusOr<protocol::WorkResult>(const protocol::Work&)>;

  explicit FakeRank(Answer answer = &AnswerTo)
      : answer_(std::move(answer)), thread_([this] { Serve(); }) {}

  ~FakeRank() override {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
      is_held_ = false;
    }
    changed_.notify_all();
    thread_.join();
  }

  absl::Status Submit(protocol::Work work, std::stop_token cancel, Done done) override {
    const std::lock_guard lock(mutex_);
    queue_.push_back({std::move(work), std::move(cancel), std::move(done)});
    ++brought_count_;
    changed_.notify_all();
    return absl::OkStatus();
  }

  // Answers nothing until Release.
  void Hold() {
    const std::lock_guard lock(mutex_);
    is_held_ = true;
  }
  void Release() {
    const std::lock_guard lock(mutex_);
    is_held_ = false;
    changed_.notify_all();
  }
  void WaitForBrought(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return brought_count_ >= count; });
  }
  size_t brought_count() const {
    const std::lock_guard lock(mutex_);
    return brought_count_;
  }
  // Of the works that wait, how many nobody waits for.
  void WaitForCancelled(size_t count) {
    std::unique_lock lock(mutex_);
    while (CancelledCount() < count) {
      changed_.wait_for(lock, std::chrono::milliseconds(1));
    }
  }
  protocol::Work front() const {
    const std::lock_guard lock(mutex_);
    return queue_.front().work;
  }

 private:
  struct Entry {
    protocol::Work work;
    std::stop_token cancel;
    Done done;
  };

  size_t CancelledCount() const {
    size_t count = 0;
    for (const Entry& entry : queue_) {
      count += entry.cancel.stop_requested() ? 1 : 0;
    }
    return count;
  }

  void Serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return is_stopping_ || (!is_held_ && !queue_.empty()); });
      if (queue_.empty()) {
        return;
      }
      Entry entry = std::move(queue_.front());
      queue_.pop_front();
      const bool is_stopping = is_stopping_;
      lock.unlock();
      if (is_stopping) {
        entry.done(absl::UnavailableError("the rank is ending"));
      } else if (entry.cancel.stop_requested()) {
        entry.done(absl::CancelledError("cancelled"));
      } else {
        entry.done(answer_(entry.work));
      }
      lock.lock();
    }
  }

  const Answer answer_;
  mutable std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  size_t brought_count_ = 0;
  bool is_held_ = false;
  bool is_stopping_ = false;
  std::thread thread_;
};

}  // namespace zp::workplane
