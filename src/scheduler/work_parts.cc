#include "scheduler/work_parts.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "protocol/work_cost.h"

namespace zp::scheduler {
namespace {

using protocol::kBlockTokens;

// A work of several passes is cut finer than them by this.
constexpr int64_t kPartsPerBatch = 16;

struct CutSequence {
  std::vector<TokenBlock> blocks;
  double flops = 0;  // after what it shares with the sequences before it
};

}  // namespace

WorkPlan PlanParts(const spec::ModelSpec& spec,
                   const protocol::BlockHasher& hasher,
                   const protocol::Work& work,
                   int64_t max_batch_tokens) {
  std::vector<CutSequence> cut;
  cut.reserve(work.sequences.size());
  DistinctTokens distinct;
  WorkPlan plan;
  for (const protocol::Sequence& sequence : work.sequences) {
    CutSequence& next = cut.emplace_back();
    next.blocks = CutIntoBlocks(hasher, work.cache_salt, sequence);
    const int64_t shared_tokens = CountTokens(next.blocks) - distinct.CountNew(next.blocks);
    next.flops = protocol::FlopsOf(spec, sequence, shared_tokens / kBlockTokens * kBlockTokens);
    plan.flops += next.flops;
    distinct.Add(next.blocks);
  }
  const bool fits = distinct.count() <= max_batch_tokens;
  const int64_t part_tokens = fits ? max_batch_tokens : max_batch_tokens / kPartsPerBatch;
  distinct = DistinctTokens();
  for (size_t i = 0; i < cut.size(); ++i) {
    if (plan.parts.empty() || distinct.count() + distinct.CountNew(cut[i].blocks) > part_tokens) {
      plan.parts.emplace_back();
      plan.part_ends.push_back(0);
      distinct = DistinctTokens();
    }
    PartCost& part = plan.parts.back();
    for (const TokenBlock& block : cut[i].blocks) {
      if (distinct.Add(block)) {
        part.blocks.push_back(block);
      }
    }
    part.flops += cut[i].flops;
    plan.part_ends.back() = static_cast<int32_t>(i) + 1;
  }
  return plan;
}

void WorkAssembly::Add(int32_t first_sequence, protocol::WorkResult piece) {
  ZP_CHECK(piece.sequences.size() <= missing_) << piece.sequences.size() << " " << missing_;
  missing_ -= piece.sequences.size();
  std::move(piece.sequences.begin(), piece.sequences.end(), sequences_.begin() + first_sequence);
  const protocol::Usage& usage = piece.usage;
  usage_.prompt_tokens += usage.prompt_tokens;
  usage_.computed_tokens += usage.computed_tokens;
  usage_.cached_tokens += usage.cached_tokens;
  usage_.flops += usage.flops;
  usage_.compute_seconds += usage.compute_seconds;
  // It waited until its first piece ran.
  usage_.queue_seconds =
      is_first_ ? usage.queue_seconds : std::min(usage_.queue_seconds, usage.queue_seconds);
  is_first_ = false;
}

protocol::WorkResult WorkAssembly::Take() {
  ZP_CHECK(is_whole()) << missing_;
  return {.sequences = std::move(sequences_), .usage = usage_};
}

}  // namespace zp::scheduler
