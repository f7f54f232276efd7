// A work of many sequences in parts that fit into a pass each: a request for ten thousand texts is
// served over several passes, with the memory of one.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "protocol/work.h"
#include "scheduler/token_blocks.h"

namespace zp::scheduler {

struct WorkPart {
  protocol::Work work;
  std::vector<TokenBlock> blocks;  // of all its sequences, each once
};

// Cuts between sequences, in their order; each part has at most `max_tokens` distinct tokens or is
// a single sequence. At least one part.
std::vector<WorkPart> CutIntoParts(protocol::Work work, int64_t max_tokens);

// Collects the answers of a work's parts and gives the whole to `done`, once: all sequences in
// order, or the first failure.
//
// Thread safety: Answer from any thread, once per part.
class WorkAssembly {
 public:
  WorkAssembly(size_t part_count, protocol::WorkSink::Done done)
      : answers_(part_count, absl::UnknownError("not answered yet")),
        missing_(part_count),
        done_(std::move(done)) {}

  void Answer(size_t part, absl::StatusOr<protocol::WorkResult> answer);

 private:
  absl::StatusOr<protocol::WorkResult> Join();

  std::mutex mutex_;
  std::vector<absl::StatusOr<protocol::WorkResult>> answers_;
  size_t missing_;
  protocol::WorkSink::Done done_;
};

}  // namespace zp::scheduler
