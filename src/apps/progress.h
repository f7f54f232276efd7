// How far a long job is: a bar that stays on one line of a terminal, or a plain line every ten
// seconds where the output is a file.
//
// Thread safety: none.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace zp::apps {

struct ProgressCounts {
  int64_t rows = 0;
  int64_t tokens = 0;
  int64_t bytes = 0;      // of a job that counts bytes, not rows and tokens
  double done_share = 0;  // 0 .. 1; 0 where the whole is not known
};

class Progress {
 public:
  // Writes to standard error.
  explicit Progress(std::string title);

  // Call as often as you like; it draws rarely.
  void Update(const ProgressCounts& counts);
  // Leaves the line, so that what is printed next starts on its own.
  void Finish(const ProgressCounts& counts);

  double seconds() const;

  // "score [=====>    ]  52 %  1040 rows  312.4 rows/s  90.1 K tokens/s  3 s left"
  static std::string Line(const std::string& title, const ProgressCounts& counts, double seconds);

 private:
  using Clock = std::chrono::steady_clock;

  void Draw(const ProgressCounts& counts);

  const std::string title_;
  const bool is_terminal_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_draw_ = start_;
};

}  // namespace zp::apps
