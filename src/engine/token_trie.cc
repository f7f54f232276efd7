#include "engine/token_trie.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace zp::engine {
namespace {

using ops::kKvBlockTokens;
using protocol::TokenId;

constexpr size_t kNobody = static_cast<size_t>(-1);

int32_t CommonPrefix(const std::vector<TokenId>& a, const std::vector<TokenId>& b) {
  const auto [end_of_a, end_of_b] = std::ranges::mismatch(a, b);
  return static_cast<int32_t>(end_of_a - a.begin());
}

// Lays out one sequence after another, in sorted order.
class TrieBuilder {
 public:
  TrieBuilder(TokenTrie& trie, std::span<std::byte* const> kept_blocks)
      : trie_(trie), batch_(trie.batch), is_written_(kept_blocks.size(), false) {
    batch_.kept_blocks.assign(kept_blocks.begin(), kept_blocks.end());
    batch_.block_count = static_cast<int32_t>(kept_blocks.size());
  }

  // Appends what sequence `index` needs and nobody brought. Its first `shared` tokens are also its
  // predecessor's.
  void Append(size_t index,
              const std::vector<TokenId>& tokens,
              int32_t shared,
              const KeptPrefix& kept) {
    const auto length = static_cast<int32_t>(tokens.size());
    ZP_CHECK(kept.needed_begin % kKvBlockTokens == 0 && kept.needed_begin < length &&
             kept.needed_begin <= kept.held_count * kKvBlockTokens)
        << kept.needed_begin;
    rows_.resize(shared);
    rows_.resize(length, TokenTrie::kNoRow);
    cached_for_.resize(shared);
    cached_for_.resize(length, kNobody);
    for (int32_t position = shared; position < kept.needed_begin; ++position) {
      cached_for_[position] = index;
      ++trie_.shares[index].cached_count;
    }
    const std::vector<int32_t> new_blocks = LayPath(shared, length, kept);
    for (int32_t begin = kept.needed_begin; begin < length;) {
      begin = rows_[begin] == TokenTrie::kNoRow ? AppendRun(index, tokens, begin) : begin + 1;
    }
    for (const int32_t block : new_blocks) {
      WriteBlock(block, length);
    }
    trie_.rows_of[index] = rows_;
  }

 private:
  // Makes path_ that of the sequence; returns its blocks that are still to be written.
  std::vector<int32_t> LayPath(int32_t shared, int32_t length, const KeptPrefix& kept) {
    const int32_t block_count = (length + kKvBlockTokens - 1) / kKvBlockTokens;
    // A copy of its predecessor shares the rest of its last block as well.
    const int32_t shared_blocks = shared == length ? block_count : shared / kKvBlockTokens;
    path_.resize(shared_blocks);
    path_.resize(block_count);
    std::vector<int32_t> new_blocks;
    for (int32_t block = 0; block < block_count; ++block) {
      if (block < std::ssize(kept.path)) {
        path_[block] = kept.path[block];
        if (block >= kept.held_count && !is_written_[kept.path[block]]) {
          is_written_[kept.path[block]] = true;
          new_blocks.push_back(block);
        }
      } else if (block >= shared_blocks) {
        path_[block] = batch_.block_count++;
        new_blocks.push_back(block);
      }
    }
    return new_blocks;
  }

  // Rows from `begin` on as far as there are none; returns the position after them.
  int32_t AppendRun(size_t index, const std::vector<TokenId>& tokens, int32_t begin) {
    const int64_t row_begin = batch_.row_count();
    int32_t end = begin;
    for (; end < std::ssize(tokens) && rows_[end] == TokenTrie::kNoRow; ++end) {
      rows_[end] = batch_.row_count();
      batch_.tokens.push_back(tokens[end]);
      batch_.positions.push_back(end);
      if (cached_for_[end] != kNobody) {  // somebody did without it, but now it is computed
        --trie_.shares[cached_for_[end]].cached_count;
      }
    }
    batch_.segments.push_back(
        {.row_begin = row_begin, .row_count = end - begin, .position_begin = begin, .path = path_});
    trie_.shares[index].runs.push_back({begin, end - begin});
    trie_.shares[index].row_count += end - begin;
    return end;
  }

  // K and V of the sequence's block number `block`.
  void WriteBlock(int32_t block, int32_t length) {
    const int32_t begin = block * kKvBlockTokens;
    const int32_t end = std::min(begin + kKvBlockTokens, length);
    for (int32_t position = begin; position < end; ++position) {
      batch_.kv_writes.push_back({rows_[position], path_[block], position - begin});
    }
    if (end - begin < kKvBlockTokens) {
      batch_.ragged_blocks.push_back(path_[block]);
    }
  }

  TokenTrie& trie_;
  model::TokenBatch& batch_;
  std::vector<bool> is_written_;  // [kept block]
  // Of the latest sequence:
  std::vector<int64_t> rows_;
  std::vector<size_t> cached_for_;  // [position] the sequence that is told that it was held
  std::vector<ops::KvBlockId> path_;
};

}  // namespace

TokenTrie BuildTokenTrie(std::span<const protocol::Sequence* const> sequences,
                         std::span<const int32_t> groups,
                         std::span<std::byte* const> kept_blocks,
                         std::span<const KeptPrefix> kept) {
  ZP_CHECK(kept.empty() || kept.size() == sequences.size()) << kept.size();
  ZP_CHECK(groups.empty() || groups.size() == sequences.size()) << groups.size();
  const auto group_of = [&](size_t index) { return groups.empty() ? 0 : groups[index]; };
  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, [&](size_t a, size_t b) {
    if (group_of(a) != group_of(b)) {
      return group_of(a) < group_of(b);
    }
    const auto order_of_tokens = sequences[a]->tokens <=> sequences[b]->tokens;
    return order_of_tokens != 0 ? order_of_tokens < 0 : a < b;
  });

  TokenTrie trie;
  trie.rows_of.resize(sequences.size());
  trie.shares.resize(sequences.size());
  TrieBuilder builder(trie, kept_blocks);
  size_t predecessor = kNobody;
  for (const size_t index : order) {
    const std::vector<TokenId>& tokens = sequences[index]->tokens;
    const bool is_related = predecessor != kNobody && group_of(predecessor) == group_of(index);
    const int32_t shared = is_related ? CommonPrefix(sequences[predecessor]->tokens, tokens) : 0;
    builder.Append(index, tokens, shared, kept.empty() ? KeptPrefix() : kept[index]);
    predecessor = index;
  }
  std::ranges::stable_sort(trie.batch.kv_writes, {}, &ops::KvWrite::row);
  return trie;
}

}  // namespace zp::engine
