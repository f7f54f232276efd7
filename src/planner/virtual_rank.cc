#include "planner/virtual_rank.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "scheduler/work_parts.h"
#include "spec/flops.h"
#include "spec/model_shapes.h"

namespace zp::planner {
namespace {

// Blocks without K and V in them: what a real one would weigh only counts for how many fit.
constexpr size_t kPhantomLayerBytes = 64;

}  // namespace

struct VirtualRank::Pass {
  scheduler::Batch batch;
  std::vector<scheduler::WorkPiece> pieces;
  std::unique_ptr<kvcache::PrefixCache::Pass> cached;
  size_t sequence_count = 0;
  FinishedPass finished;
};

absl::StatusOr<std::unique_ptr<VirtualRank>> VirtualRank::Create(
    const spec::ModelSpec& spec, const RankModel& model, const VirtualRankOptions& options) {
  std::unique_ptr<kvcache::PrefixCache> cache;
  if (options.cache_bytes > 0) {
    const int64_t block_bytes =
        protocol::kBlockTokens * spec::KvBytesPerToken(spec, spec::DType::kBf16);
    const spec::ModelSpec one_layer = spec::WithLayerCount(spec, 1);
    ZP_ASSIGN_OR_RETURN(
        cache,
        kvcache::PrefixCache::Create(
            one_layer,
            {.budget_bytes = options.cache_bytes / block_bytes * int64_t{kPhantomLayerBytes},
             .block_key = options.block_key,
             .layer_block_bytes = kPhantomLayerBytes}));
  }
  return std::unique_ptr<VirtualRank>(new VirtualRank(spec, model, options, std::move(cache)));
}

VirtualRank::VirtualRank(const spec::ModelSpec& spec,
                         const RankModel& model,
                         const VirtualRankOptions& options,
                         std::unique_ptr<kvcache::PrefixCache> cache)
    : spec_(spec),
      model_(model),
      options_(options),
      hasher_(options.block_key),
      cache_(std::move(cache)),
      queue_(QueueOptions()) {
  queue_.SetSpeed(model.flops_per_s(), model.saturation_flops());
}

VirtualRank::~VirtualRank() = default;

int64_t VirtualRank::CacheTokens() const {
  return options_.cache_bytes / spec::KvBytesPerToken(spec_, spec::DType::kBf16);
}

// As the Scheduler's.
scheduler::BatchQueueOptions VirtualRank::QueueOptions() const {
  scheduler::BatchQueueOptions options = options_.queue;
  options.held = &held_blocks_;
  options.max_held_tokens = CacheTokens();
  return options;
}

scheduler::PlanLimits VirtualRank::Limits() const {
  scheduler::PlanLimits limits = {.max_batch_tokens = options_.queue.max_batch_tokens};
  if (cache_ != nullptr) {
    limits.ahead_tokens = scheduler::AheadTokens(
        options_.ahead_tokens, model_.saturation_tokens(), limits.max_batch_tokens);
    limits.max_held_tokens = CacheTokens();
    limits.held = &held_blocks_;
  }
  return limits;
}

void VirtualRank::Add(uint64_t id, protocol::Work work, scheduler::TimePoint now) {
  scheduler::WorkPlan plan = scheduler::PlanParts(spec_, hasher_, work, Limits());
  queue_.Add({.id = id,
              .parts = std::move(plan.parts),
              .ahead_count = static_cast<int32_t>(plan.cuts.ahead_ends.size()),
              .arrival = now,
              .priority = work.priority,
              .deadline = work.deadline});
  works_[id] = {.work = std::move(work), .cuts = std::move(plan.cuts)};
}

scheduler::WorkPiece VirtualRank::TakePiece(const scheduler::TakenWork& taken) {
  WorkHere& here = works_.at(taken.id);
  scheduler::WorkPiece piece = scheduler::TakePiece(here.cuts, taken, here.work);
  piece.work.cache_salt = here.work.cache_salt;
  return piece;
}

std::optional<double> VirtualRank::StartPass(scheduler::TimePoint now) {
  auto pass = std::make_unique<Pass>();
  pass->batch = queue_.Take(now);
  if (pass->batch.works.empty()) {
    return std::nullopt;
  }
  std::vector<kvcache::CachedSequence> sequences;
  for (const scheduler::TakenWork& taken : pass->batch.works) {
    pass->pieces.push_back(TakePiece(taken));
  }
  for (const scheduler::WorkPiece& piece : pass->pieces) {
    for (const protocol::Sequence& sequence : piece.work.sequences) {
      sequences.push_back({.sequence = &sequence, .salt = piece.work.cache_salt});
    }
  }
  pass->sequence_count = sequences.size();
  if (cache_ != nullptr) {
    cache_->Await(pass->batch.awaited);
    pass->cached = cache_->Begin(sequences);
  }
  AddCosts(*pass);
  queue_.Prepare(now);
  pass_ = std::move(pass);
  return pass_->finished.seconds;
}

// What the pass computes and finds in the cache, and how long it takes.
void VirtualRank::AddCosts(Pass& pass) const {
  protocol::PassCost cost(spec_);
  FinishedPass& finished = pass.finished;
  size_t next_sequence = 0;
  for (const scheduler::WorkPiece& piece : pass.pieces) {
    std::vector<int32_t> held_tokens;
    for (size_t i = 0; cache_ != nullptr && i < piece.work.sequences.size(); ++i) {
      held_tokens.push_back(pass.cached->held_count(next_sequence++) * protocol::kBlockTokens);
    }
    const protocol::WorkCost added = cost.Add(piece.work, held_tokens);
    finished.cost.tokens += added.tokens;
    finished.cost.flops += added.flops;
    if (piece.is_ahead) {
      finished.cached_tokens -= added.tokens;  // what it finds later of these is no gain
      continue;
    }
    for (size_t i = 0; i < held_tokens.size(); ++i) {
      finished.cached_tokens += protocol::SkippableTokens(piece.work.sequences[i], held_tokens[i]);
    }
  }
  finished.seconds = model_.PassSeconds(finished.cost.flops);
  finished.exposed_wait_seconds = model_.ExposedWaitSeconds(finished.cost.flops);
}

VirtualRank::FinishedPass VirtualRank::FinishPass() {
  const std::unique_ptr<Pass> pass = std::move(pass_);
  FinishedPass finished = std::move(pass->finished);
  if (cache_ != nullptr) {
    pass->cached->Publish(std::vector<uint8_t>(pass->sequence_count, 1));
    pass->cached = nullptr;
    finished.report.cache = cache_->TakeEvents();
    held_blocks_.Apply(finished.report.cache);
  }
  finished.report.flops_per_s = model_.flops_per_s();
  finished.report.saturation_flops = model_.saturation_flops();
  for (const scheduler::TakenWork& taken : pass->batch.works) {
    if (taken.is_last) {
      finished.answered.push_back(taken.id);
      works_.erase(taken.id);
    }
  }
  return finished;
}

}  // namespace zp::planner
