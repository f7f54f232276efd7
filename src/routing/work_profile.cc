#include "routing/work_profile.h"

#include <algorithm>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "protocol/work_cost.h"
#include "spec/flops.h"

namespace zp::routing {
namespace {

using protocol::BlockHash;
using protocol::kBlockTokens;

// Short prompts have a name as well.
BlockHash AffinityOf(const protocol::BlockHasher& hasher,
                     const protocol::Work& work,
                     std::span<const BlockHash> chain) {
  if (!chain.empty()) {
    return chain[std::min<size_t>(chain.size(), kAffinityBlocks) - 1];
  }
  return hasher.Next(hasher.Root(work.cache_salt), work.sequences.front().tokens);
}

}  // namespace

TokenPrice::TokenPrice(const spec::ModelSpec& spec) {
  linear_flops_ = spec::KeyValueFlops(spec);  // the last layer's
  for (int32_t layer = 0; layer + 1 < spec.layer_count; ++layer) {
    linear_flops_ +=
        spec::QueryOutputFlops(spec) + spec::KeyValueFlops(spec) + spec::FfnFlops(spec, layer);
    pair_flops_ += spec::AttentionFlops(spec, 1, 0);
  }
}

WorkProfile ProfileOf(const spec::ModelSpec& spec,
                      const protocol::BlockHasher& hasher,
                      const protocol::Work& work) {
  WorkProfile profile{.prompt_tokens = work.token_count(), .deadline = work.deadline};
  absl::flat_hash_map<BlockHash, int32_t> place_of;  // in profile.blocks
  std::vector<int32_t> begins;
  for (const protocol::Sequence& sequence : work.sequences) {
    const std::vector<BlockHash> chain = hasher.Chain(work.cache_salt, sequence.tokens);
    SequenceProfile& here = profile.sequences.emplace_back();
    here.skippable_tokens =
        protocol::SkippableTokens(sequence, static_cast<int32_t>(sequence.tokens.size()));
    // A name covers all before it, so what is shared is a beginning.
    for (const BlockHash& block : chain) {
      const auto known = place_of.find(block);
      if (known == place_of.end()) {
        break;
      }
      here.parent_block = known->second;
      ++here.shared_blocks;
    }
    here.first_block = static_cast<int32_t>(profile.blocks.size());
    here.block_count = static_cast<int32_t>(chain.size()) - here.shared_blocks;
    for (size_t block = here.shared_blocks; block < chain.size(); ++block) {
      if (work.sequences.size() > 1) {
        place_of.emplace(chain[block], static_cast<int32_t>(profile.blocks.size()));
      }
      profile.blocks.push_back(chain[block]);
    }
    begins.push_back(here.shared_blocks * kBlockTokens);
    if (profile.sequences.size() == 1) {
      profile.affinity = AffinityOf(hasher, work, chain);
    }
  }
  const protocol::WorkCost cost = protocol::CostFrom(spec, work, begins);
  profile.computed_tokens = cost.tokens;
  profile.flops = cost.flops;
  return profile;
}

}  // namespace zp::routing
