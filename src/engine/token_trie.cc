#include "engine/token_trie.h"

#include <algorithm>
#include <numeric>

namespace zp::engine {
namespace {

using ops::kKvBlockTokens;
using protocol::TokenId;

int32_t CommonPrefix(const std::vector<TokenId>& a, const std::vector<TokenId>& b) {
  const auto [end_of_a, end_of_b] = std::ranges::mismatch(a, b);
  return static_cast<int32_t>(end_of_a - a.begin());
}

// Lays out one sequence after another, in sorted order.
class TrieBuilder {
 public:
  explicit TrieBuilder(TokenTrie& trie) : batch_(trie.batch) {}

  // Appends what `tokens` has beyond its first `shared` ones, which are also the predecessor's.
  // Returns the rows of all its tokens.
  const std::vector<int64_t>& Append(const std::vector<TokenId>& tokens, int32_t shared) {
    rows_.resize(shared);
    const auto length = static_cast<int32_t>(tokens.size());
    if (shared == length) {
      return rows_;  // a copy of its predecessor, or its beginning: nothing new
    }
    path_.resize(shared / kKvBlockTokens);
    for (int32_t position = shared / kKvBlockTokens * kKvBlockTokens; position < length;
         ++position) {
      if (position % kKvBlockTokens == 0) {
        path_.push_back(batch_.block_count++);
      }
      if (position >= shared) {
        rows_.push_back(batch_.row_count());
        batch_.tokens.push_back(tokens[position]);
        batch_.positions.push_back(position);
      }
      batch_.kv_writes.push_back({rows_[position], path_.back(), position % kKvBlockTokens});
    }
    if (length % kKvBlockTokens != 0) {
      batch_.ragged_blocks.push_back(path_.back());
    }
    batch_.segments.push_back({.row_begin = rows_[shared],
                               .row_count = length - shared,
                               .position_begin = shared,
                               .path = path_});
    return rows_;
  }

 private:
  model::TokenBatch& batch_;
  std::vector<int64_t> rows_;         // of the latest sequence
  std::vector<ops::KvBlockId> path_;  // of the latest sequence that brought rows
};

}  // namespace

TokenTrie BuildTokenTrie(std::span<const protocol::Sequence* const> sequences) {
  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, [&](size_t a, size_t b) {
    const auto order_of_tokens = sequences[a]->tokens <=> sequences[b]->tokens;
    return order_of_tokens != 0 ? order_of_tokens < 0 : a < b;
  });

  TokenTrie trie;
  trie.rows_of.resize(sequences.size());
  trie.shared_counts.resize(sequences.size());
  TrieBuilder builder(trie);
  const std::vector<TokenId>* predecessor = nullptr;
  for (const size_t index : order) {
    const std::vector<TokenId>& tokens = sequences[index]->tokens;
    trie.shared_counts[index] = predecessor == nullptr ? 0 : CommonPrefix(*predecessor, tokens);
    trie.rows_of[index] = builder.Append(tokens, trie.shared_counts[index]);
    predecessor = &tokens;
  }
  std::ranges::stable_sort(trie.batch.kv_writes, {}, &ops::KvWrite::row);
  return trie;
}

}  // namespace zp::engine
