// What the router needs to know of a work, computed once: its blocks by name and what it costs as a
// function of what a rank holds.
//
// Separate from protocol::CostOf, which is the definition, since that one hashes the work anew for
// every rank it is asked about: here the work is hashed once and each rank costs a few additions.
//
// The cost of a sequence of n tokens of which the first p need not be computed is, by
// spec::PassFlops, f + P(n) - P(p), where f depends on the rows asked alone and P(t) is the price
// of the first t tokens: t * linear + (layers - 1) * attention(t). So what a rank saves by holding
// p tokens is P(p), whatever follows.
//
// Thread safety: pure functions.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "protocol/block_chain.h"
#include "protocol/work.h"
#include "spec/model_spec.h"

namespace zp::routing {

// P above.
class TokenPrice {
 public:
  explicit TokenPrice(const spec::ModelSpec& spec);

  double FlopsOfFirst(int64_t tokens) const {
    const auto count = static_cast<double>(tokens);
    return count * linear_flops_ + count * (count + 1) / 2 * pair_flops_;
  }

 private:
  double linear_flops_ = 0;  // of a token, in the layers where every token is computed
  double pair_flops_ = 0;    // of a query and a key, in the same
};

struct SequenceProfile {
  // Its blocks that no earlier sequence of the work has: blocks[first_block, first_block +
  // block_count). They follow `shared_blocks` blocks that one has, the last of which is
  // blocks[parent_block]; -1: none.
  int32_t parent_block = -1;
  int32_t shared_blocks = 0;
  int32_t first_block = 0;
  int32_t block_count = 0;
  int32_t skippable_tokens = 0;  // at most, of a rank that holds all of it
};

struct WorkProfile {
  std::vector<protocol::BlockHash> blocks;  // distinct; each after the one it follows
  std::vector<SequenceProfile> sequences;
  int64_t prompt_tokens = 0;  // asked
  // For a rank that holds nothing.
  int64_t computed_tokens = 0;
  double flops = 0;
  // The name of the first blocks (up to kAffinityBlocks of them): what ties are broken by.
  protocol::BlockHash affinity;
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

// Deep enough to tell prompts from each other behind a common preamble, short enough that works
// with a few-shot prompt in common agree.
inline constexpr int32_t kAffinityBlocks = 4;

// REQUIRES: as protocol::CostOf.
WorkProfile ProfileOf(const spec::ModelSpec& spec,
                      const protocol::BlockHasher& hasher,
                      const protocol::Work& work);

}  // namespace zp::routing
