// Scores a file line by line through a Handler: a window of lines is in flight, so that they share
// passes and prefixes, and answers are written in the order of the lines.
//
// A bad line gets an error as its answer and nothing else happens. Memory is bounded by the window.
// A file that was cut off in the middle (a kill, a full disk) is gone on with by `resume`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "gateway/message.h"

namespace zp::apps {

struct ScoreFileOptions {
  std::string input_path;
  std::string output_path;
  bool resume = false;     // keep the answers that are there and add the missing ones
  bool overwrite = false;  // otherwise an output that holds something is an error
  // Enough for several passes of short lines; the bytes bound the memory that long ones take.
  size_t window_lines = 4096;
  size_t window_bytes = 64 << 20;
};

struct ScoreFileCounts {
  int64_t rows = 0;  // answered now, errors among them
  int64_t errors = 0;
  int64_t skipped = 0;  // answered by an earlier run
  int64_t asked_tokens = 0;
  int64_t computed_tokens = 0;
  double flops = 0;
  double done_share = 0;  // of the input's bytes; 0 where its size is not known
};

// Whether ScoreFile would begin, as far as can be told without opening a file: for callers that
// load a model in between. NotFound and FailedPrecondition as below.
absl::Status CheckScoreFiles(const ScoreFileOptions& options);

// Calls `on_row` from the caller's thread after each answer. NotFound when the input cannot be
// read, FailedPrecondition when the output holds something, Unavailable when it cannot be written.
absl::StatusOr<ScoreFileCounts> ScoreFile(
    const ScoreFileOptions& options,
    const gateway::Handler& handler,
    const std::function<void(const ScoreFileCounts&)>& on_row);

}  // namespace zp::apps
