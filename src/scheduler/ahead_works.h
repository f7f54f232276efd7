// Of the works of a BatchQueue whose beginning is computed ahead: with which part each goes on, now
// that the prefix cache has what earlier passes left in it or has it no more, and how many of them
// may be under way at once.
//
// A part that the cache holds is skipped, whoever computed it; the same beginning is computed once,
// though many wait for it. If a work's own last part is not held when its turn comes (the cache
// needed the room, or the pass failed), the rest goes at once: it costs what the work costs, while
// to begin again could go on for ever. So a work is computed at most twice.
//
// What is under way together has to fit into half of the cache. Beyond that a work waits for the
// others, unless it is the first in a batch or due: held back, it would bar who came after it.
//
// Thread safety: none. Ownership: `held` must outlive this.
#pragma once

#include <cstdint>

#include "scheduler/waiting_line.h"

namespace zp::scheduler {

class AheadWorks {
 public:
  // `held` null: all that was computed ahead counts as held.
  AheadWorks(const HeldBlocks* held, int64_t max_held_tokens);

  // Whether the cache has just what `part`, the next one of the entry, builds on.
  bool IsNext(const WaitingEntry& entry, int32_t part) const;
  // Moves the entry, which stands in no line, to the part with which it goes on.
  void GoOn(WaitingEntry& entry);

  // Sets room apart for a work that has none, if there is any or it `must_go`; false: it has to
  // wait. `is_shared`: a work in the same batch computes its next part for both.
  bool SetRoomApart(WaitingEntry& entry, bool is_shared, bool must_go);
  void GiveRoomBack(WaitingEntry& entry);

 private:
  // Whether the entry goes by what is held.
  bool Follows(const WaitingEntry& entry) const;
  // All that is not held goes with the last part.
  void TakeRestFrom(int32_t begin, WaitingEntry& entry);
  int32_t CountHeldParts(const WaitingWork& work) const;

  const HeldBlocks* const held_;
  const int64_t max_tokens_;
  int64_t room_tokens_ = 0;  // set apart
};

}  // namespace zp::scheduler
