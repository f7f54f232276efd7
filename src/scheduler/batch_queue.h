// Which works run in the next pass: the order of a rank's queue and the filling of its batches,
// without threads, without a clock and without the works themselves, so that a server and a
// simulation in virtual time form the same batches.
//
// Order. Let c(r) be the true FLOPs that work r still needs, alone, and A(r) the FLOPs of all works
// that were ever added, up to and including r. Works go by priority, then by
//
//     due(r) = A(r) + ageing * c(r),
//
// a batch's shared blocks counting as done: short and cheap works overtake, and each only so far.
// Whatever the order would like, q is taken before r of the same priority only if A(q) <= due(r).
// So the later works that run in passes in which r has no part cost together at most
//
//     A(q) - A(r) <= ageing * c(r)           for the last q of them:
//
// nobody waits for more than `ageing` times its own cost behind works that came after it, at any
// load. Works of equal cost that share nothing go first in, first out.
//
// Filling. A batch takes works in that order up to max_batch_tokens distinct tokens (a shared
// prefix counts once; a single part that is larger runs alone). What does not fit is passed over
// within the bound above. A work that is longer than all that is in the batch together does not
// join it once the batch has reached T*, unless it stays within twice T* or a quarter of the limit:
// the shorter ones would wait for it. Below T* they wait for the gather anyway.
//
// Computing ahead. A work whose beginning is computed ahead has one part of it in a pass, and that
// is what is long or short in a batch. While n works wait whose beginning was not held when they
// came, such a part joins a batch that costs at most sqrt(n) of it, or where its turn is due. At
// each of its turns a work goes on from where the prefix cache has it (ahead_works.h), and c(r)
// with it.
//
// Cost: Add, Remove and each work taken cost O(log queue) and their own blocks.
//
// Thread safety: none. Time never runs backwards between calls.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stop_token>
#include <vector>

#include "protocol/awaited_blocks.h"
#include "scheduler/held_blocks.h"
#include "scheduler/token_blocks.h"

namespace zp::scheduler {

using TimePoint = std::chrono::steady_clock::time_point;

struct BatchQueueOptions {
  // Distinct tokens of one pass. More gives each expert more rows per pass, and each client a
  // longer wait for the pass before its own.
  int64_t max_batch_tokens = 16'384;
  // How long a batch below T* may wait for company, since the arrival of its oldest work.
  std::chrono::nanoseconds max_hold{0};
  // How many times its own cost a work may wait behind later ones. Small: first in, first out.
  // Large: shortest first, and more works of one prefix in a batch.
  double ageing = 32;
  // What the prefix cache holds; must outlive the queue. Null: all that was computed ahead.
  const HeldBlocks* held = nullptr;
  // Tokens that it holds at most; 0: there is no cache, and nobody hears what is awaited.
  int64_t max_held_tokens = std::numeric_limits<int64_t>::max();
};

// What goes into one pass or another, never into two.
struct PartCost {
  std::vector<TokenBlock> blocks;  // each once; a sequence's first to last, sequence after sequence
  double flops = 0;                // after what it shares with the parts before it
};

struct WaitingWork {
  uint64_t id = 0;  // the caller's; unique among those in the queue
  std::vector<PartCost> parts;
  // So many parts, all but the last, are computed ahead of it for the prefix cache, one a pass: see
  // AheadWorks. No block is in two parts of such a work. 0: none.
  int32_t ahead_count = 0;
  TimePoint arrival;
  int64_t priority = 0;                              // lower is earlier
  std::optional<TimePoint> deadline = std::nullopt;  // not taken after it
  std::stop_token cancel = {};                       // not taken once a stop is requested
};

// The next parts of a work, which go into a pass together; those computed ahead that the cache
// holds are left out.
struct TakenWork {
  uint64_t id = 0;
  int32_t first_part = 0;
  int32_t part_count = 0;
  bool is_last = false;  // nothing of the work is left in the queue
};

struct Batch {
  std::vector<TakenWork> works;
  int64_t distinct_tokens = 0;
  double flops = 0;        // an estimate, after sharing
  double asked_flops = 0;  // as if each work ran alone: what leaves waiting_flops()
  // Of those that wait when this batch has been taken, since the last batch that was not empty.
  protocol::AwaitedChanges awaited = {};
};

enum class DropReason { kCancelled, kExpired };

struct DroppedWork {
  uint64_t id = 0;
  DropReason reason = DropReason::kCancelled;
};

class BatchQueue {
 public:
  explicit BatchQueue(const BatchQueueOptions& options);
  ~BatchQueue();

  // REQUIRES: at least one part, each with at least one token; an id that is not in the queue.
  void Add(WaitingWork work);
  // What is left of the work goes; false if nothing is.
  bool Remove(uint64_t id);
  std::vector<uint64_t> RemoveAll();

  // What passes showed: FLOP/s, and T* in FLOPs of a pass (0: nothing to fill up to).
  void SetSpeed(double flops_per_s, double saturation_flops);

  // When the next pass should start: in the past or now unless the queue holds its batch for
  // company; nullopt while nothing waits. Adding works may bring it forward.
  std::optional<TimePoint> StartTime() const;

  // The first deadline of all that waits, and what has passed its own goes: Take does so too, but
  // the client of a lost work need not wait for the end of a pass to hear of it.
  std::optional<TimePoint> FirstDeadline() const;
  void DropExpired(TimePoint now);

  // Forms the next batch ahead of time, while a pass runs.
  void Prepare(TimePoint now);
  bool is_prepared() const;
  // The next batch: the prepared one with what has come since, or one formed now where that puts
  // others first. Empty if nothing that waits may run.
  Batch Take(TimePoint now);

  // The works that were dropped since the last call; each is reported once, and nothing of it is
  // taken any more.
  std::vector<DroppedWork> TakeDropped();

  // Of what has not been taken.
  size_t work_count() const;
  bool empty() const { return work_count() == 0; }
  double waiting_flops() const;  // exactly 0 when nothing waits

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zp::scheduler
