#include "kvcache/prefix_cache.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "fmt/format.h"
#include "spec/flops.h"

namespace zp::kvcache {
namespace {

using protocol::kBlockTokens;

constexpr int32_t kNoNode = -1;

// What computing block number `depth` of a prefix costs when nothing is asked of it.
double BlockFlops(const spec::ModelSpec& spec, int32_t depth) {
  return spec::PassFlops(
      spec,
      {.token_count = kBlockTokens,
       .attention_flops = spec::AttentionFlops(spec, kBlockTokens, int64_t{depth} * kBlockTokens)});
}

// Whole blocks before or at the last position whose hidden state is asked for.
int32_t AskedBlocks(const protocol::Sequence& sequence) {
  auto end = static_cast<int32_t>(sequence.tokens.size());
  if (sequence.pooling == protocol::Pooling::kNone) {
    end = sequence.rows.empty() ? 0 : sequence.rows.back().position + 1;
  }
  return end / kBlockTokens;
}

std::span<const spec::TokenId> TokensOf(const protocol::Sequence& sequence, int32_t depth) {
  return std::span(sequence.tokens).subspan(int64_t{depth} * kBlockTokens, kBlockTokens);
}

}  // namespace

PrefixCache::PrefixCache(const BlockIndexOptions& index_options,
                         const PrefixCacheOptions& options,
                         int64_t block_bytes)
    : hasher_(options.block_key),
      block_bytes_(block_bytes),
      index_(index_options),
      bytes_(index_options.capacity_blocks * block_bytes, "prefix_cache") {}

absl::StatusOr<std::unique_ptr<PrefixCache>> PrefixCache::Create(
    const spec::ModelSpec& spec, const PrefixCacheOptions& options) {
  ZP_CHECK(options.layer_block_bytes > 0) << options.layer_block_bytes;
  const int64_t block_bytes = spec.layer_count * static_cast<int64_t>(options.layer_block_bytes);
  if (options.budget_bytes < block_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("the prefix cache has {} bytes; {} tokens of this model take {}",
                    options.budget_bytes,
                    kBlockTokens,
                    block_bytes));
  }
  if (!(options.salt_fraction > 0 && options.salt_fraction <= 1)) {
    return absl::InvalidArgumentError(
        fmt::format("the fraction of the prefix cache for one cache_salt is {}; it must be above 0 "
                    "and at most 1",
                    options.salt_fraction));
  }
  const int64_t capacity =
      std::min<int64_t>(options.budget_bytes / block_bytes, std::numeric_limits<BlockId>::max());
  const double first_block_flops = BlockFlops(spec, 0);
  return std::unique_ptr<PrefixCache>(
      new PrefixCache({.capacity_blocks = static_cast<int32_t>(capacity),
                       .salt_fraction = options.salt_fraction,
                       .first_block_flops = first_block_flops,
                       .deeper_block_flops = BlockFlops(spec, 1) - first_block_flops},
                      options,
                      block_bytes));
}

std::unique_ptr<PrefixCache::Pass> PrefixCache::Begin(std::span<const CachedSequence> sequences) {
  return std::unique_ptr<Pass>(new Pass(*this, sequences));
}

PrefixCache::Pass::Pass(PrefixCache& cache, std::span<const CachedSequence> sequences)
    : cache_(cache), sequences_(sequences.begin(), sequences.end()), plans_(sequences.size()) {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    AddNodes(i);
  }
  ReserveNew();
  LayPaths();
}

PrefixCache::Pass::~Pass() {
  // Children first: they come after their parents.
  for (auto node = nodes_.rbegin(); node != nodes_.rend(); ++node) {
    if (node->block == kNoBlock) {
      continue;
    }
    cache_.index_.Unpin(node->block);
    if (!node->is_held) {
      cache_.index_.Drop(node->block);
    }
  }
}

// The blocks of a sequence, as nodes of the forest of this pass; pins those that are held.
void PrefixCache::Pass::AddNodes(size_t sequence) {
  const std::span<const spec::TokenId> tokens = sequences_[sequence].sequence->tokens;
  const std::string_view salt = sequences_[sequence].salt;
  const std::vector<protocol::BlockHash> chain = cache_.hasher_.Chain(salt, tokens);
  const std::vector<BlockId> held = cache_.index_.Match(salt, tokens, chain);
  SequencePlan& plan = plans_[sequence];
  plan.held_count = static_cast<int32_t>(held.size());
  plan.keep_count = AskedBlocks(*sequences_[sequence].sequence);
  // A root for each salt, so that nodes of two salts are never one.
  int32_t parent = roots_.try_emplace(salt, kNoNode - 1 - std::ssize(roots_)).first->second;
  for (int32_t depth = 0; depth < std::max(plan.held_count, plan.keep_count); ++depth) {
    const auto [found, is_new] = node_by_name_.try_emplace(chain[depth], std::ssize(nodes_));
    const int32_t index = found->second;
    if (is_new) {
      nodes_.push_back(
          {.name = chain[depth], .parent = parent, .depth = depth, .sequence = sequence});
      if (depth < plan.held_count) {
        nodes_[index].block = held[depth];
        nodes_[index].is_held = true;
        cache_.index_.Pin(held[depth]);
      }
    } else if (!IsSame(nodes_[index], parent, sequence, depth)) {
      break;  // another prefix of the same name: this one is not kept
    }
    nodes_[index].sequence_count += depth < plan.keep_count ? 1 : 0;
    plan.nodes.push_back(index);
    parent = index;
  }
  plan.held_count = std::min(plan.held_count, static_cast<int32_t>(plan.nodes.size()));
}

bool PrefixCache::Pass::IsSame(const Node& node,
                               int32_t parent,
                               size_t sequence,
                               int32_t depth) const {
  return node.parent == parent &&  // so the depth is the same as well
         std::ranges::equal(TokensOf(*sequences_[node.sequence].sequence, depth),
                            TokensOf(*sequences_[sequence].sequence, depth));
}

// First what most sequences of the pass share, then what lies nearest to the beginning: if not all
// of it finds a place, each prefix is held as far as it goes.
void PrefixCache::Pass::ReserveNew() {
  std::vector<int32_t> order;
  for (int32_t index = 0; index < std::ssize(nodes_); ++index) {
    if (!nodes_[index].is_held) {
      order.push_back(index);
    }
  }
  std::ranges::stable_sort(order, {}, [&](int32_t index) {
    return std::pair(-nodes_[index].sequence_count, nodes_[index].depth);
  });
  // A pass replaces at most half of what there is: one that is larger than the cache would leave
  // nothing else in it.
  BlockIndex& index = cache_.index_;
  const int64_t evictions_end = index.eviction_count() + std::max(1, index.capacity_blocks() / 2);
  for (const int32_t place : order) {
    Node& node = nodes_[place];
    const bool is_first = node.parent < 0;
    const BlockId parent = is_first ? kNoBlock : nodes_[node.parent].block;
    if (!is_first && parent == kNoBlock) {
      continue;
    }
    node.block =
        index.Reserve({.name = node.name,
                       .parent = parent,
                       .salt = sequences_[node.sequence].salt,
                       .tokens = TokensOf(*sequences_[node.sequence].sequence, node.depth)},
                      index.eviction_count() < evictions_end);
  }
}

void PrefixCache::Pass::LayPaths() {
  for (Node& node : nodes_) {
    if (node.block != kNoBlock) {
      node.index = static_cast<int32_t>(blocks_.size());
      blocks_.push_back(cache_.bytes_.data() + node.block * cache_.block_bytes_);
    }
  }
  for (SequencePlan& plan : plans_) {
    for (const int32_t index : plan.nodes) {
      if (nodes_[index].block == kNoBlock) {
        break;
      }
      plan.path.push_back(nodes_[index].index);
    }
  }
}

void PrefixCache::Pass::Publish(std::span<const uint8_t> is_answered) {
  ZP_CHECK(is_answered.size() == plans_.size()) << is_answered.size();
  for (size_t i = 0; i < plans_.size(); ++i) {
    const SequencePlan& plan = plans_[i];
    const auto count = std::min<size_t>(plan.path.size(), plan.keep_count);
    for (size_t depth = 0; is_answered[i] != 0 && depth < count; ++depth) {
      Node& node = nodes_[plan.nodes[depth]];
      if (!std::exchange(node.is_held, true)) {
        cache_.index_.Publish(node.block);
      }
    }
  }
}

}  // namespace zp::kvcache
