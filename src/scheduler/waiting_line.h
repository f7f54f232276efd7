// The works of a BatchQueue that stand in line, in their order, and beside it the lines of those
// that begin with the same blocks: whoever runs calls its relatives from far behind.
//
// A work stands in one family for each power of two of blocks it begins with. Two works that have n
// first blocks in common meet in a family of more than n/2 blocks, and a work of b blocks stands in
// log2(b) + 1 of them.
//
// Thread safety: none. Ownership: entries are lent, and leave before they are destroyed.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "scheduler/batch_queue.h"

namespace zp::scheduler {

struct WaitingEntry;

// Where a work stands.
struct Place {
  int64_t priority = 0;
  double due = 0;
  uint64_t number = 0;  // of arrival; breaks ties
  WaitingEntry* entry = nullptr;

  bool operator<(const Place& other) const {
    if (priority != other.priority) {
      return priority < other.priority;
    }
    return due != other.due ? due < other.due : number < other.number;
  }
};

// Of a work whose beginning is computed ahead, see AheadWorks.
struct AheadState {
  bool is_new = false;      // its beginning was not held when it came: see MayStep
  int32_t last_part = -1;   // of those computed ahead, the last that a pass took
  uint64_t last_batch = 0;  // that took it
  int64_t room_tokens = 0;  // of the cache, set apart for it
  // What was lost of it goes with its last part, from this part on; -1: nothing was.
  int32_t rest_begin = -1;
};

struct WaitingEntry {
  WaitingWork work;
  uint64_t number = 0;
  double admitted_flops = 0;   // A
  double remaining_flops = 0;  // c
  int32_t next_part = 0;
  // Of those before next_part, in the batch that is being formed; it stands in line only while
  // there are none.
  int32_t prepared_parts = 0;
  AheadState ahead;
  Place place;
  uint64_t seen_by_batch = 0;     // the last one that considered it
  uint64_t refused_by_batch = 0;  // the last one that it must not join, as others are due

  const PartCost& part() const { return work.parts[next_part]; }
  bool has_parts() const { return next_part < static_cast<int32_t>(work.parts.size()); }
};

class WaitingLine {
 public:
  explicit WaitingLine(double ageing) : ageing_(ageing) {}

  bool empty() const { return line_.empty(); }
  // REQUIRES: !empty().
  const Place& first() const { return *line_.begin(); }
  bool Contains(const Place& place) const { return line_.contains(place); }

  void Enter(WaitingEntry& entry);
  void Leave(WaitingEntry& entry);

 private:
  friend class Candidates;
  using Line = absl::btree_set<Place>;

  const double ageing_;
  Line line_;
  absl::flat_hash_map<protocol::BlockHash, Line> families_;
};

// Who comes next into a batch, given who is in it: the first of the line and the first of each
// family that shares something with the batch, by due() of what they would add to it.
class Candidates {
 public:
  explicit Candidates(const WaitingLine& line);

  bool empty() const { return heap_.empty(); }
  // The next one; it stands in line. nullptr if there is none. A work may come several times.
  WaitingEntry* Next();
  // By what the last one that Next gave was chosen.
  const Place& last_key() const { return last_key_; }
  // This part goes into the batch: its relatives follow.
  void Call(const PartCost& part);

 private:
  struct Candidate {
    Place key;    // what the heap goes by
    Place place;  // in its line
    bool is_family = false;
    protocol::BlockHash family;
    double shared_flops = 0;

    bool operator<(const Candidate& other) const { return other.key < key; }  // smallest on top
  };

  // The first of its line after candidate.place, or after nobody.
  void Push(Candidate candidate, bool is_first);

  const WaitingLine& line_;
  std::vector<Candidate> heap_;
  absl::flat_hash_set<protocol::BlockHash> called_;
  Place last_key_;
};

}  // namespace zp::scheduler
