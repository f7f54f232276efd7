// How a work of many sequences is served over several passes: where it may be cut, and how the
// answers of its pieces become one again.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "protocol/block_chain.h"
#include "protocol/work.h"
#include "scheduler/batch_queue.h"
#include "spec/model_spec.h"

namespace zp::scheduler {

struct WorkPlan {
  std::vector<PartCost> parts;
  std::vector<int32_t> part_ends;  // sequences [0, part_ends[i]) are in the parts up to i
  double flops = 0;                // of all
};

// One part for a work that fits into a pass; else parts of whole sequences, small against a pass,
// so that they fill what others leave of it. A single sequence is never cut.
WorkPlan PlanParts(const spec::ModelSpec& spec,
                   const protocol::BlockHasher& hasher,
                   const protocol::Work& work,
                   int64_t max_batch_tokens);

// Collects the answers of a work's pieces.
//
// Thread safety: none.
class WorkAssembly {
 public:
  explicit WorkAssembly(size_t sequence_count)
      : missing_(sequence_count), sequences_(sequence_count) {}

  // The answer of the sequences from `first_sequence` on; each sequence once.
  void Add(int32_t first_sequence, protocol::WorkResult piece);
  bool is_whole() const { return missing_ == 0; }
  // All sequences in order. REQUIRES: is_whole().
  protocol::WorkResult Take();

 private:
  size_t missing_;
  std::vector<protocol::SequenceResult> sequences_;
  protocol::Usage usage_;
  bool is_first_ = true;
};

}  // namespace zp::scheduler
