// Which pairs of tokens merge, how early, and into what: a flat hash table with linear probing,
// 16 bytes an entry, at most half full.
//
// Thread safety: immutable once filled.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "spec/model_spec.h"

namespace zp::text {

struct Merge {
  static constexpr uint32_t kNever = std::numeric_limits<uint32_t>::max();
  uint32_t rank = kNever;  // the lowest merges first
  spec::TokenId token = -1;
};

class MergeTable {
 public:
  explicit MergeTable(size_t pair_count)
      : entries_(std::bit_ceil(pair_count * 2 + 2)),
        shift_(64 - std::countr_zero(entries_.size())) {}

  // The last merge of a pair wins.
  void Set(spec::TokenId left, spec::TokenId right, Merge merge) {
    Entry& entry = entries_[SlotOf(KeyOf(left, right))];
    entry = {KeyOf(left, right), merge};
  }
  Merge Find(spec::TokenId left, spec::TokenId right) const {
    return entries_[SlotOf(KeyOf(left, right))].merge;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Entry {
    uint64_t pair = kEmpty;
    Merge merge;
  };

  static uint64_t KeyOf(spec::TokenId left, spec::TokenId right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  // Where `pair` is, or the free slot where it would be.
  size_t SlotOf(uint64_t pair) const {
    size_t slot = (pair ^ pair >> 32) * 0x9e3779b97f4a7c15u >> shift_;
    while (entries_[slot].pair != pair && entries_[slot].pair != kEmpty) {
      slot = (slot + 1) & (entries_.size() - 1);
    }
    return slot;
  }

  std::vector<Entry> entries_;
  int shift_;
};

}  // namespace zp::text
