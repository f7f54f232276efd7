#include "apps/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/units.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

constexpr std::chrono::milliseconds kTerminalInterval{100};
constexpr std::chrono::seconds kFileInterval{10};
constexpr int kBarWidth = 24;

std::string Bar(double share) {
  const int filled = std::clamp(static_cast<int>(share * kBarWidth), 0, kBarWidth);
  return fmt::format("[{}{}]", std::string(filled, '='), std::string(kBarWidth - filled, ' '));
}

}  // namespace

Progress::Progress(std::string title)
    : title_(std::move(title)), is_terminal_(isatty(STDERR_FILENO) == 1) {}

double Progress::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

std::string Progress::Line(const std::string& title, const ProgressCounts& counts, double seconds) {
  const double elapsed = std::max(seconds, 1e-3);
  std::string line = title;
  if (counts.done_share > 0) {
    line += fmt::format(" {} {:3.0f} %", Bar(counts.done_share), 100 * counts.done_share);
  }
  if (counts.bytes > 0) {
    const auto bytes_per_s = static_cast<int64_t>(static_cast<double>(counts.bytes) / elapsed);
    line +=
        fmt::format("  {}  {}/s", base::FormatBytes(counts.bytes), base::FormatBytes(bytes_per_s));
  } else {
    line += fmt::format("  {} rows  {:.1f} rows/s  {} tokens/s",
                        counts.rows,
                        static_cast<double>(counts.rows) / elapsed,
                        base::FormatCount(static_cast<double>(counts.tokens) / elapsed));
  }
  if (counts.done_share > 0 && counts.done_share < 1) {
    line += fmt::format("  {:.0f} s left", elapsed * (1 / counts.done_share - 1));
  }
  return line;
}

void Progress::Update(const ProgressCounts& counts) {
  const auto since_draw = Clock::now() - last_draw_;
  if (is_terminal_ ? since_draw >= kTerminalInterval : since_draw >= kFileInterval) {
    Draw(counts);
  }
}

void Progress::Finish(const ProgressCounts& counts) {
  if (is_terminal_) {
    Draw(counts);
    fmt::print(stderr, "\n");
  }
}

void Progress::Draw(const ProgressCounts& counts) {
  last_draw_ = Clock::now();
  const std::string line = Line(title_, counts, seconds());
  if (is_terminal_) {
    fmt::print(stderr, "\r{}\x1b[K", line);  // and clear what an earlier, longer line left
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

}  // namespace zp::apps
