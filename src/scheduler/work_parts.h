// How a work of many sequences is served over several passes: where it may be cut, and how the
// answers of its pieces become one again.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "protocol/block_chain.h"
#include "protocol/work.h"
#include "scheduler/batch_queue.h"
#include "scheduler/held_blocks.h"
#include "spec/model_spec.h"

namespace zp::scheduler {

struct PlanLimits {
  int64_t max_batch_tokens = 0;
  // For works whose beginning the prefix cache can hold from pass to pass: how much of it a pass
  // computes. 0: all at once.
  int64_t ahead_tokens = 0;
  int64_t max_held_tokens = 0;       // what the cache holds at most
  const HeldBlocks* held = nullptr;  // what it holds now; null: nothing
};

// The `ahead_tokens` of a rank: what was set, and at least T*, below which a pass would cost more
// than its tokens, if a pass may have so many.
int64_t AheadTokens(int64_t set_tokens, double saturation_tokens, int64_t max_batch_tokens);

// Where a work is cut into parts.
struct WorkCuts {
  // The first parts compute the first ahead_ends[i] tokens of what all sequences begin with, for
  // the prefix cache, each on top of the one before.
  std::vector<int32_t> ahead_ends;
  // The other parts answer the sequences up to sequence_ends[i], each from where the last ended.
  std::vector<int32_t> sequence_ends;
};

struct WorkPlan {
  std::vector<PartCost> parts;
  WorkCuts cuts;
};

// One part for a work that fits into a pass; else parts of whole sequences, small against a pass,
// so that they fill what others leave of it. Sequences that share more than half a pass come in
// larger parts, of one sequence and half of max_batch_tokens at most, lest each pass that computes
// what they share does little else; each such part costs all of that. A long common beginning, of
// two steps or more (one long sequence has it with itself), is computed ahead in parts of its own
// if the limits allow it, so that nobody waits for all of it; nothing else cuts a sequence.
WorkPlan PlanParts(const spec::ModelSpec& spec,
                   const protocol::BlockHasher& hasher,
                   const protocol::Work& work,
                   const PlanLimits& limits);

// What goes through the engine for some parts of a work.
struct WorkPiece {
  protocol::Work work;
  int32_t first_sequence = 0;
  bool is_ahead = false;  // answers nothing
};

// Moves the sequences that are answered out of `work`; the caller fills in the rest of the work.
WorkPiece TakePiece(const WorkCuts& cuts, const TakenWork& taken, protocol::Work& work);

// Collects the answers of a work's pieces.
//
// Thread safety: none.
class WorkAssembly {
 public:
  explicit WorkAssembly(size_t sequence_count)
      : missing_(sequence_count), sequences_(sequence_count) {}

  // The answer of the sequences from `first_sequence` on; each sequence once.
  void Add(int32_t first_sequence, protocol::WorkResult piece);
  // What a piece cost that answers nothing.
  void AddAhead(const protocol::Usage& usage);
  bool is_whole() const { return missing_ == 0; }
  // All sequences in order. REQUIRES: is_whole().
  protocol::WorkResult Take();

 private:
  void AddUsage(const protocol::Usage& usage);

  size_t missing_;
  std::vector<protocol::SequenceResult> sequences_;
  protocol::Usage usage_;
  int64_t ahead_computed_tokens_ = 0;
  bool is_first_ = true;
};

}  // namespace zp::scheduler
