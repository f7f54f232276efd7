#include "text/bpe_merge.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <queue>

#include "absl/container/flat_hash_map.h"

namespace zp::text {
namespace {

using spec::TokenId;

// Up to here scanning is the quickest, and beyond kMaxHeapSymbols the heap no longer fits a cache.
constexpr size_t kMaxScannedSymbols = 64;
constexpr size_t kMaxHeapSymbols = 16384;

// `tokens` holds `count` symbols; returns how many are left.
size_t MergeByScanning(const MergeTable& merges, TokenId* tokens, size_t count) {
  std::array<uint32_t, kMaxScannedSymbols> ranks;  // of the pair (i, i + 1)
  std::array<TokenId, kMaxScannedSymbols> merged;
  const auto look_up = [&](size_t i) {
    const Merge merge = merges.Find(tokens[i], tokens[i + 1]);
    ranks[i] = merge.rank;
    merged[i] = merge.token;
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == Merge::kNever) break;
    tokens[best] = merged[best];
    std::copy(tokens + best + 2, tokens + count, tokens + best + 1);
    std::copy(ranks.data() + best + 1, ranks.data() + count - 1, ranks.data() + best);
    std::copy(merged.data() + best + 1, merged.data() + count - 1, merged.data() + best);
    --count;
    if (best > 0) look_up(best - 1);
    if (best + 1 < count) look_up(best);
  }
  return count;
}

// A pair that may merge: rank, then position, so that the least comes first.
using Key = uint64_t;
constexpr Key KeyOf(uint32_t rank, uint32_t at) { return Key{rank} << 32 | at; }
constexpr uint32_t RankOf(Key key) { return static_cast<uint32_t>(key >> 32); }
constexpr uint32_t PositionOf(Key key) { return static_cast<uint32_t>(key); }

template <typename T>
using MinHeap = std::priority_queue<T, std::vector<T>, std::greater<>>;

class HeapAgenda {
 public:
  void Push(Key key) { keys_.push(key); }
  // The least key; false when there is none.
  bool Peek(Key& key) const {
    if (keys_.empty()) return false;
    key = keys_.top();
    return true;
  }
  bool Pop(Key& key) {
    if (!Peek(key)) return false;
    keys_.pop();
    return true;
  }

 private:
  MinHeap<Key> keys_;
};

// The same order from one list of positions per rank, sorted when its turn comes. It walks the word
// from left to right once a rank, where a heap of millions misses the caches at every step.
class BucketAgenda {
 public:
  void Push(Key key) {
    if (started_ && RankOf(key) <= current_rank_) {
      early_.Push(key);
      return;
    }
    const auto [bucket, is_new] = buckets_.try_emplace(RankOf(key));
    if (is_new) ranks_.push(RankOf(key));
    bucket->second.push_back(PositionOf(key));
  }

  bool Pop(Key& key) {
    const bool has_early = early_.Peek(key);
    if (next_ == current_.size() && !has_early && !NextBucket()) return false;
    const Key current = next_ < current_.size() ? KeyOf(current_rank_, current_[next_]) : ~Key{0};
    if (has_early && key < current) return early_.Pop(key);
    key = current;
    ++next_;
    return true;
  }

 private:
  bool NextBucket() {
    if (ranks_.empty()) return false;
    started_ = true;
    current_rank_ = ranks_.top();
    ranks_.pop();
    const auto bucket = buckets_.find(current_rank_);
    current_ = std::move(bucket->second);
    buckets_.erase(bucket);
    next_ = 0;
    if (!std::is_sorted(current_.begin(), current_.end())) {
      std::sort(current_.begin(), current_.end());
    }
    return true;
  }

  absl::flat_hash_map<uint32_t, std::vector<uint32_t>> buckets_;  // by rank, above current_rank_
  MinHeap<uint32_t> ranks_;
  bool started_ = false;
  uint32_t current_rank_ = 0;
  std::vector<uint32_t> current_;
  size_t next_ = 0;
  HeapAgenda early_;  // what turned up with a rank that has passed; rare in trained merges
};

template <typename Agenda>
class LinkedMerger {
 public:
  LinkedMerger(const MergeTable& merges, const TokenId* tokens, size_t count) : merges_(merges) {
    symbols_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      symbols_[i] = {tokens[i], static_cast<uint32_t>(i) - 1, static_cast<uint32_t>(i) + 1};
    }
    for (uint32_t i = 0; i + 1 < count; ++i) Plan(i);
  }

  void Run() {
    Key key = 0;
    while (agenda_.Pop(key)) {
      // Stale where the pair has changed since.
      if (symbols_[PositionOf(key)].rank == RankOf(key)) MergeAt(PositionOf(key));
    }
  }

  // Writes the symbols that are left; returns how many.
  size_t WriteTo(TokenId* tokens) const {
    size_t count = 0;
    for (uint32_t i = 0; i < symbols_.size(); i = symbols_[i].next) {
      tokens[count++] = symbols_[i].token;
    }
    return count;
  }

 private:
  struct Symbol {
    TokenId token;
    uint32_t previous;  // symbols_.size() or more: none
    uint32_t next;
    uint32_t rank = Merge::kNever;  // of the pair (this, next); kNever too once merged away
  };

  void Plan(uint32_t at) {
    Symbol& symbol = symbols_[at];
    symbol.rank = Merge::kNever;
    if (symbol.next >= symbols_.size()) return;
    symbol.rank = merges_.Find(symbol.token, symbols_[symbol.next].token).rank;
    if (symbol.rank != Merge::kNever) agenda_.Push(KeyOf(symbol.rank, at));
  }

  void MergeAt(uint32_t at) {
    Symbol& left = symbols_[at];
    Symbol& right = symbols_[left.next];
    left.token = merges_.Find(left.token, right.token).token;
    left.next = right.next;
    right.rank = Merge::kNever;
    if (left.next < symbols_.size()) symbols_[left.next].previous = at;
    if (left.previous < symbols_.size()) Plan(left.previous);
    Plan(at);
  }

  const MergeTable& merges_;
  std::vector<Symbol> symbols_;
  Agenda agenda_;
};

template <typename Agenda>
size_t MergeLinked(const MergeTable& merges, TokenId* tokens, size_t count) {
  LinkedMerger<Agenda> merger(merges, tokens, count);
  merger.Run();
  return merger.WriteTo(tokens);
}

}  // namespace

void MergeSymbols(const MergeTable& merges, size_t first, std::vector<TokenId>& symbols) {
  TokenId* const tokens = symbols.data() + first;
  size_t count = symbols.size() - first;
  if (count < 2) return;
  if (count <= kMaxScannedSymbols) {
    count = MergeByScanning(merges, tokens, count);
  } else if (count <= kMaxHeapSymbols) {
    count = MergeLinked<HeapAgenda>(merges, tokens, count);
  } else {
    count = MergeLinked<BucketAgenda>(merges, tokens, count);
  }
  symbols.resize(first + count);
}

}  // namespace zp::text
