#include "scheduler/work_parts.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "protocol/work_cost.h"
#include "spec/flops.h"

namespace zp::scheduler {
namespace {

using protocol::kBlockTokens;

// A work of several passes is cut finer than them by this.
constexpr int64_t kPartsPerBatch = 16;

// Sequences that share more than this share of a pass with the first of their part are cut coarser,
// by as much beyond that first one: each part computes anew what they share.
constexpr int64_t kSharedShare = 2;

// What is shorter than so many steps is not computed ahead: nobody waits long for it.
constexpr int64_t kLeastSteps = 2;

// A work may take this share of what the prefix cache holds: others have their prefixes in there.
constexpr int64_t kHeldShare = 4;

struct CutSequence {
  std::vector<TokenBlock> blocks;
  int32_t held_tokens = 0;  // need not be computed
};

std::vector<CutSequence> CutSequences(const protocol::BlockHasher& hasher,
                                      const protocol::Work& work,
                                      const PlanLimits& limits) {
  std::vector<CutSequence> cut;
  cut.reserve(work.sequences.size());
  for (const protocol::Sequence& sequence : work.sequences) {
    CutSequence& next = cut.emplace_back();
    next.blocks = CutIntoBlocks(hasher, work.cache_salt, sequence);
    if (limits.held != nullptr) {
      const int64_t held_tokens = limits.held->CountLeading(next.blocks) * kBlockTokens;
      next.held_tokens = protocol::SkippableTokens(sequence, static_cast<int32_t>(held_tokens));
    }
  }
  return cut;
}

int64_t CountDistinct(const std::vector<CutSequence>& cut) {
  DistinctTokens distinct;
  for (const CutSequence& sequence : cut) {
    distinct.Add(sequence.blocks);
  }
  return distinct.count();
}

// How many tokens all sequences begin with of which no row is asked.
int32_t CommonBeginning(const protocol::Work& work, const std::vector<CutSequence>& cut) {
  const std::vector<TokenBlock>& first = cut[0].blocks;
  int32_t common_tokens = INT32_MAX;
  for (size_t i = 0; i < cut.size(); ++i) {
    const std::vector<TokenBlock>& blocks = cut[i].blocks;
    const auto differs = std::mismatch(
        first.begin(), first.end(), blocks.begin(), blocks.end(), [](const auto& a, const auto& b) {
          return a.name == b.name;
        });
    const auto same_tokens = static_cast<int32_t>((differs.first - first.begin()) * kBlockTokens);
    common_tokens =
        protocol::SkippableTokens(work.sequences[i], std::min(common_tokens, same_tokens));
  }
  return common_tokens;
}

double FlopsBetween(const spec::ModelSpec& spec, int64_t begin, int64_t end) {
  return spec::PassFlops(spec,
                         {.token_count = end - begin,
                          .attention_flops = spec::AttentionFlops(spec, end - begin, begin)});
}

// As many tokens from `begin` on, in whole blocks, as cost about what the first `token_count` cost:
// attention makes later ones dearer.
int64_t StepFrom(const spec::ModelSpec& spec, int64_t begin, int64_t token_count) {
  const double most_flops = 1.05 * FlopsBetween(spec, 0, token_count);
  int64_t blocks = token_count / kBlockTokens;
  while (blocks > 1 && FlopsBetween(spec, begin, begin + blocks * kBlockTokens) > most_flops) {
    blocks -= (blocks + 15) / 16;
  }
  return blocks * kBlockTokens;
}

// Where the beginning is cut that is computed ahead; empty where nothing is. What is held now is
// cut, too: it may be gone when the work's turn comes.
std::vector<int32_t> CutAhead(const spec::ModelSpec& spec,
                              const protocol::Work& work,
                              const std::vector<CutSequence>& cut,
                              int64_t distinct_tokens,
                              const PlanLimits& limits) {
  const int64_t least_tokens = kLeastSteps * limits.ahead_tokens;
  if (limits.ahead_tokens < kBlockTokens || distinct_tokens < least_tokens ||
      distinct_tokens > limits.max_held_tokens / kHeldShare) {
    return {};
  }
  const int64_t common_tokens = CommonBeginning(work, cut);
  const int64_t held_tokens = std::min<int64_t>(cut[0].held_tokens, common_tokens);
  std::vector<int32_t> ends;
  int64_t end = 0;
  while (end < held_tokens) {
    end = std::min(end + StepFrom(spec, end, limits.ahead_tokens), held_tokens);
    ends.push_back(static_cast<int32_t>(end));
  }
  while (distinct_tokens - held_tokens >= least_tokens) {
    const int64_t step = StepFrom(spec, end, limits.ahead_tokens);
    if (end + step > common_tokens || distinct_tokens - end <= step) {
      break;
    }
    end += step;
    ends.push_back(static_cast<int32_t>(end));
  }
  // A rest of several passes would begin each with what was computed ahead.
  return distinct_tokens - end <= limits.max_batch_tokens ? ends : std::vector<int32_t>();
}

protocol::Sequence Beginning(const protocol::Sequence& sequence, int32_t end) {
  // An engine refuses a sequence of which nothing is asked; the last token's state costs one row.
  return {.tokens = {sequence.tokens.begin(), sequence.tokens.begin() + end},
          .pooling = protocol::Pooling::kLastToken};
}

// The parts of cuts.ahead_ends.
void PlanAhead(const spec::ModelSpec& spec,
               const protocol::Sequence& sequence,
               const std::vector<TokenBlock>& blocks,
               WorkPlan& plan) {
  int32_t begin = 0;
  for (const int32_t end : plan.cuts.ahead_ends) {
    plan.parts.push_back(
        {.blocks = {blocks.begin() + begin / kBlockTokens, blocks.begin() + end / kBlockTokens},
         .flops = protocol::FlopsOf(spec, Beginning(sequence, end), begin)});
    begin = end;
  }
}

// The part that sequences join.
class OpenPart {
 public:
  explicit OpenPart(const PlanLimits& limits, DistinctTokens held = {})
      : max_batch_tokens_(limits.max_batch_tokens), tokens_(std::move(held)) {}

  bool TakesAlso(const std::vector<TokenBlock>& blocks) const {
    const int64_t new_tokens = tokens_.CountNew(blocks);
    const int64_t then_tokens = tokens_.count() + new_tokens;
    if (then_tokens <= max_batch_tokens_ / kPartsPerBatch) {
      return true;
    }
    const int64_t coarse_tokens = max_batch_tokens_ / kSharedShare;
    return CountTokens(blocks) - new_tokens > coarse_tokens &&
           then_tokens - first_tokens_ <= coarse_tokens;
  }

  // Moves the blocks that are new to it to `part`.
  void Take(const std::vector<TokenBlock>& blocks, PartCost& part) {
    for (const TokenBlock& block : blocks) {
      if (tokens_.Add(block)) {
        part.blocks.push_back(block);
      }
    }
    first_tokens_ = first_tokens_ > 0 ? first_tokens_ : CountTokens(blocks);
  }

  // No other part of the work runs in the same pass.
  bool is_coarse() const { return first_tokens_ > max_batch_tokens_ / kSharedShare; }

 private:
  int64_t max_batch_tokens_;
  DistinctTokens tokens_;
  int64_t first_tokens_ = 0;  // of its first sequence
};

}  // namespace

int64_t AheadTokens(int64_t set_tokens, double saturation_tokens, int64_t max_batch_tokens) {
  const double most_tokens = static_cast<double>(max_batch_tokens);
  return std::max(set_tokens, static_cast<int64_t>(std::min(saturation_tokens, most_tokens)));
}

WorkPlan PlanParts(const spec::ModelSpec& spec,
                   const protocol::BlockHasher& hasher,
                   const protocol::Work& work,
                   const PlanLimits& limits) {
  const std::vector<CutSequence> cut = CutSequences(hasher, work, limits);
  const int64_t distinct_tokens = CountDistinct(cut);
  WorkPlan plan;
  plan.cuts.ahead_ends = CutAhead(spec, work, cut, distinct_tokens, limits);
  PlanAhead(spec, work.sequences[0], cut[0].blocks, plan);

  const bool is_ahead = !plan.cuts.ahead_ends.empty();
  const bool is_one_part = is_ahead || distinct_tokens <= limits.max_batch_tokens;
  DistinctTokens seen;
  if (is_ahead) {
    seen.Add(std::span(cut[0].blocks).first(plan.cuts.ahead_ends.back() / kBlockTokens));
  }
  OpenPart open(limits, seen);
  for (size_t i = 0; i < cut.size(); ++i) {
    const std::vector<TokenBlock>& blocks = cut[i].blocks;
    if (i == 0 || (!is_one_part && !open.TakesAlso(blocks))) {
      if (open.is_coarse()) {
        seen = DistinctTokens();  // a pass of its own computes and costs all of it
      }
      if (i > 0) {
        open = OpenPart(limits);
      }
      plan.parts.emplace_back();
      plan.cuts.sequence_ends.emplace_back();
    }
    const int64_t shared_tokens = CountTokens(blocks) - seen.CountNew(blocks);
    const int64_t begin =
        std::max<int64_t>(shared_tokens / kBlockTokens * kBlockTokens, cut[i].held_tokens);
    plan.parts.back().flops += protocol::FlopsOf(spec, work.sequences[i], begin);
    seen.Add(blocks);
    open.Take(blocks, plan.parts.back());
    plan.cuts.sequence_ends.back() = static_cast<int32_t>(i) + 1;
  }
  return plan;
}

WorkPiece TakePiece(const WorkCuts& cuts, const TakenWork& taken, protocol::Work& work) {
  const auto ahead_count = static_cast<int32_t>(cuts.ahead_ends.size());
  WorkPiece piece;
  if (taken.first_part < ahead_count) {
    ZP_CHECK(taken.part_count == 1) << taken.part_count;
    piece.is_ahead = true;
    piece.work.sequences = {Beginning(work.sequences[0], cuts.ahead_ends[taken.first_part])};
    return piece;
  }
  const int32_t first = taken.first_part - ahead_count;
  piece.first_sequence = first == 0 ? 0 : cuts.sequence_ends[first - 1];
  const auto begin = work.sequences.begin();
  piece.work.sequences.assign(
      std::make_move_iterator(begin + piece.first_sequence),
      std::make_move_iterator(begin + cuts.sequence_ends[first + taken.part_count - 1]));
  return piece;
}

void WorkAssembly::Add(int32_t first_sequence, protocol::WorkResult piece) {
  ZP_CHECK(piece.sequences.size() <= missing_) << piece.sequences.size() << " " << missing_;
  missing_ -= piece.sequences.size();
  std::move(piece.sequences.begin(), piece.sequences.end(), sequences_.begin() + first_sequence);
  usage_.prompt_tokens += piece.usage.prompt_tokens;
  usage_.cached_tokens += piece.usage.cached_tokens;
  AddUsage(piece.usage);
}

void WorkAssembly::AddAhead(const protocol::Usage& usage) {
  ahead_computed_tokens_ += usage.computed_tokens;
  AddUsage(usage);
}

void WorkAssembly::AddUsage(const protocol::Usage& usage) {
  usage_.computed_tokens += usage.computed_tokens;
  usage_.flops += usage.flops;
  usage_.compute_seconds += usage.compute_seconds;
  // It waited until its first piece ran.
  usage_.queue_seconds =
      is_first_ ? usage.queue_seconds : std::min(usage_.queue_seconds, usage.queue_seconds);
  is_first_ = false;
}

protocol::WorkResult WorkAssembly::Take() {
  ZP_CHECK(is_whole()) << missing_;
  // What it computed ahead and then found is no gain.
  usage_.cached_tokens = std::max<int64_t>(0, usage_.cached_tokens - ahead_computed_tokens_);
  return {.sequences = std::move(sequences_), .usage = usage_};
}

}  // namespace zp::scheduler
