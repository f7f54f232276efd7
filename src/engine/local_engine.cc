#include <algorithm>
#include <chrono>
#include <numeric>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/check.h"
#include "engine/engine.h"
#include "engine/logit_reader.h"
#include "engine/row_charges.h"
#include "engine/token_trie.h"
#include "engine/work_check.h"
#include "fabric/peer_source.h"
#include "fmt/format.h"
#include "kvcache/prefix_cache.h"
#include "model/forward_pass.h"
#include "model/gathered_moe.h"
#include "protocol/work_cost.h"
#include "spec/flops.h"

namespace zp::engine {
namespace {

using protocol::Pooling;
using protocol::Sequence;
using protocol::Work;
using protocol::WorkResult;

// The sequences of the works that are valid, one after the other.
struct FlatBatch {
  std::vector<const Sequence*> sequences;
  std::vector<size_t> work_of_sequence;
  std::vector<int32_t> groups;  // of sequences: those of one cache_salt
};

void FailAll(const absl::Status& status, BatchResult& result) {
  for (auto& work : result.works) {
    if (work.ok()) {
      work = status;
    }
  }
}

class LocalEngine : public Engine {
 public:
  LocalEngine(std::unique_ptr<base::ThreadPool> pool,
              std::unique_ptr<ops::Kernels> kernels,
              std::shared_ptr<const HostModel> host_model,
              std::unique_ptr<experts::ExpertGatherer> experts,
              std::unique_ptr<model::MoeBlock> moe,
              const EngineOptions& options)
      : pool_(std::move(pool)),
        kernels_(std::move(kernels)),
        host_model_(std::move(host_model)),
        experts_(std::move(experts)),
        source_names_(experts_ != nullptr ? experts_->source_names() : std::vector<std::string>{}),
        moe_(std::move(moe)),
        forward_(host_model_->weights(), *moe_, *kernels_, options.chunk_tokens),
        logit_reader_(host_model_->weights(), *kernels_),
        profile_(options.trace, options.rank) {}

  absl::Status OpenPrefixCache(const EngineOptions& options);

  const spec::ModelSpec& spec() const override { return host_model_->spec(); }
  std::string kernels_name() const override { return std::string(kernels_->name()); }
  int64_t prefix_cache_tokens() const override {
    return prefix_cache_ == nullptr
               ? 0
               : int64_t{prefix_cache_->index().capacity_blocks()} * protocol::kBlockTokens;
  }

  absl::Status Validate(const Work& work) const override { return CheckWork(spec(), work); }
  absl::Status ConnectHost(int32_t host, const std::string& advertisement) override;
  void Await(const protocol::AwaitedChanges& changes) override {
    if (prefix_cache_ != nullptr) {
      prefix_cache_->Await(changes);
    }
  }
  BatchResult Run(std::span<const Work* const> batch) override;

 private:
  FlatBatch Flatten(std::span<const Work* const> batch, BatchResult& result) const;
  std::unique_ptr<kvcache::PrefixCache::Pass> BeginCached(std::span<const Work* const> batch,
                                                          const FlatBatch& flat);
  void AskRows(const FlatBatch& flat, TokenTrie& trie) const;
  void Charge(const FlatBatch& flat, const TokenTrie& trie, BatchResult& result) const;
  void Answer(const FlatBatch& flat,
              const TokenTrie& trie,
              ops::ConstMatrix hidden,
              BatchResult& result);
  void PublishAnswered(const FlatBatch& flat,
                       const BatchResult& result,
                       kvcache::PrefixCache::Pass& cached) const;
  void Report(PassReport& report);

  const std::unique_ptr<base::ThreadPool> pool_;
  const std::unique_ptr<ops::Kernels> kernels_;
  const std::shared_ptr<const HostModel> host_model_;
  const std::unique_ptr<experts::ExpertGatherer> experts_;  // null with a MoE block from outside
  const std::vector<std::string> source_names_;
  const std::unique_ptr<model::MoeBlock> moe_;
  model::ForwardPass forward_;
  LogitReader logit_reader_;
  model::PassProfile profile_;
  std::unique_ptr<kvcache::PrefixCache> prefix_cache_;  // null: there is none
};

// The trie of what is not held.
TokenTrie BuildTrie(const FlatBatch& flat, const kvcache::PrefixCache::Pass* cached) {
  if (cached == nullptr) {
    return BuildTokenTrie(flat.sequences, flat.groups);
  }
  std::vector<KeptPrefix> kept;
  for (size_t i = 0; i < flat.sequences.size(); ++i) {
    const int32_t held_count = cached->held_count(i);
    kept.push_back({.path = cached->path(i),
                    .held_count = held_count,
                    .needed_begin = protocol::SkippableTokens(
                        *flat.sequences[i], held_count * protocol::kBlockTokens)});
  }
  return BuildTokenTrie(flat.sequences, flat.groups, cached->blocks(), kept);
}

absl::Status LocalEngine::OpenPrefixCache(const EngineOptions& options) {
  ZP_ASSIGN_OR_RETURN(
      prefix_cache_,
      kvcache::PrefixCache::Create(spec(),
                                   {.budget_bytes = options.prefix_cache_bytes,
                                    .salt_fraction = options.prefix_cache_quota,
                                    .block_key = options.block_key,
                                    .layer_block_bytes = forward_.kv_block_bytes()}));
  return absl::OkStatus();
}

absl::Status LocalEngine::ConnectHost(int32_t host, const std::string& advertisement) {
  ZP_CHECK(experts_ != nullptr && host != host_model_->options().host) << host;
  std::unique_ptr<fabric::ByteSource> bytes;
  if (!advertisement.empty()) {
    ZP_ASSIGN_OR_RETURN(bytes, fabric::OpenPeerSource(advertisement));
  }
  if (source_names_.empty()) {
    return absl::OkStatus();  // nothing is gathered
  }
  experts_->ReplaceSource(host_model_->SourceOf(host), std::move(bytes));
  return absl::OkStatus();
}

BatchResult LocalEngine::Run(std::span<const Work* const> batch) {
  const auto begin = std::chrono::steady_clock::now();
  BatchResult result;
  profile_.Clear(spec().layer_count, source_names_.size());
  const FlatBatch flat = Flatten(batch, result);
  const std::unique_ptr<kvcache::PrefixCache::Pass> cached = BeginCached(batch, flat);
  TokenTrie trie = BuildTrie(flat, cached.get());
  AskRows(flat, trie);
  if (!flat.sequences.empty()) {
    Charge(flat, trie, result);
    if (const absl::StatusOr<ops::ConstMatrix> hidden = forward_.Run(trie.batch, profile_);
        hidden.ok()) {
      Answer(flat, trie, *hidden, result);
      if (cached != nullptr) {
        PublishAnswered(flat, result, *cached);
      }
    } else {
      FailAll(hidden.status(), result);
    }
  }
  PassReport& report = result.report;
  Report(report);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (auto& work : result.works) {
    if (work.ok()) {
      work->usage.compute_seconds = report.seconds;
    }
  }
  return result;
}

// Null without a cache.
std::unique_ptr<kvcache::PrefixCache::Pass> LocalEngine::BeginCached(
    std::span<const Work* const> batch, const FlatBatch& flat) {
  if (prefix_cache_ == nullptr) {
    return nullptr;
  }
  std::vector<kvcache::CachedSequence> sequences;
  for (size_t i = 0; i < flat.sequences.size(); ++i) {
    sequences.push_back({flat.sequences[i], batch[flat.work_of_sequence[i]]->cache_salt});
  }
  return prefix_cache_->Begin(sequences);
}

void LocalEngine::PublishAnswered(const FlatBatch& flat,
                                  const BatchResult& result,
                                  kvcache::PrefixCache::Pass& cached) const {
  std::vector<uint8_t> is_answered;
  for (const size_t work : flat.work_of_sequence) {
    is_answered.push_back(result.works[work].ok() ? 1 : 0);
  }
  cached.Publish(is_answered);
}

void LocalEngine::Report(PassReport& report) {
  if (prefix_cache_ != nullptr) {
    report.cache_queried_tokens = report.cached_tokens + report.computed_tokens;
    report.cache_held_bytes = prefix_cache_->held_bytes();
    report.cache_events = prefix_cache_->TakeEvents();
  }
  for (size_t op = 0; op < model::kOpNames.size(); ++op) {
    report.seconds_by_op[std::string(model::kOpNames[op])] =
        profile_.seconds(static_cast<model::Op>(op));
  }
  for (const model::LayerProfile& layer : profile_.layers()) {
    report.layers.push_back({.compute_seconds = layer.compute_seconds,
                             .exposed_wait_seconds = layer.exposed_wait_seconds,
                             .gather_seconds = layer.gather_seconds,
                             .gathered_bytes = layer.gathered_bytes});
    report.exposed_wait_seconds += layer.exposed_wait_seconds;
  }
  for (size_t source = 0; source < source_names_.size(); ++source) {
    report.gathered_bytes_by_source[source_names_[source]] = profile_.source_bytes()[source];
  }
}

FlatBatch LocalEngine::Flatten(std::span<const Work* const> batch, BatchResult& result) const {
  FlatBatch flat;
  absl::flat_hash_map<std::string_view, int32_t> group_of_salt;
  for (size_t index = 0; index < batch.size(); ++index) {
    if (absl::Status status = Validate(*batch[index]); !status.ok()) {
      result.works.emplace_back(std::move(status));
      continue;
    }
    result.works.emplace_back(WorkResult{});
    const auto [group, is_new] = group_of_salt.try_emplace(
        batch[index]->cache_salt, static_cast<int32_t>(group_of_salt.size()));
    for (const Sequence& sequence : batch[index]->sequences) {
      flat.sequences.push_back(&sequence);
      flat.work_of_sequence.push_back(index);
      flat.groups.push_back(group->second);
    }
  }
  return flat;
}

void LocalEngine::AskRows(const FlatBatch& flat, TokenTrie& trie) const {
  std::vector<int64_t>& asked = trie.batch.asked_rows;
  for (size_t i = 0; i < flat.sequences.size(); ++i) {
    const Sequence& sequence = *flat.sequences[i];
    for (const protocol::RowAsk& ask : sequence.rows) {
      asked.push_back(trie.rows_of[i][ask.position]);
    }
    for (const int32_t position : PooledPositions(sequence)) {
      asked.push_back(trie.rows_of[i][position]);
    }
  }
  std::ranges::sort(asked);
  asked.erase(std::unique(asked.begin(), asked.end()), asked.end());
}

// What each work costs: its own tokens, and those shared rows that it is the first to bring.
void LocalEngine::Charge(const FlatBatch& flat, const TokenTrie& trie, BatchResult& result) const {
  RowCharges charges(spec(), trie.batch.row_count());
  for (size_t i = 0; i < flat.sequences.size(); ++i) {
    const Sequence& sequence = *flat.sequences[i];
    const spec::PassShape shape = charges.ShapeOf(sequence, trie.rows_of[i], trie.shares[i].runs);
    const double flops = spec::PassFlops(spec(), shape);
    const auto length = static_cast<int64_t>(sequence.tokens.size());
    protocol::Usage& usage = result.works[flat.work_of_sequence[i]]->usage;
    usage.prompt_tokens += length;
    usage.computed_tokens += shape.token_count;
    usage.cached_tokens += trie.shares[i].cached_count;
    usage.flops += flops;
    result.report.asked_tokens += length;
    result.report.computed_tokens += shape.token_count;
    result.report.cached_tokens += trie.shares[i].cached_count;
    result.report.flops += flops;
  }
}

void LocalEngine::Answer(const FlatBatch& flat,
                         const TokenTrie& trie,
                         ops::ConstMatrix hidden,
                         BatchResult& result) {
  std::vector<LogitReader::Ask> asks;
  const auto hidden_row = [&](size_t sequence, int32_t position) {
    return std::ranges::lower_bound(trie.batch.asked_rows, trie.rows_of[sequence][position]) -
           trie.batch.asked_rows.begin();
  };
  for (size_t i = 0; i < flat.sequences.size(); ++i) {
    for (const protocol::RowAsk& ask : flat.sequences[i]->rows) {
      asks.push_back({hidden_row(i, ask.position), &ask});
    }
  }
  std::vector<protocol::Row> rows =
      profile_.Timed(model::Op::kLogits, [&] { return logit_reader_.Read(hidden, asks); });

  auto next_row = rows.begin();
  for (size_t i = 0; i < flat.sequences.size(); ++i) {
    const Sequence& sequence = *flat.sequences[i];
    protocol::SequenceResult answer;
    answer.rows.assign(
        std::make_move_iterator(next_row),
        std::make_move_iterator(next_row + static_cast<int64_t>(sequence.rows.size())));
    next_row += static_cast<int64_t>(sequence.rows.size());
    if (sequence.pooling != Pooling::kNone) {
      std::vector<int64_t> pooled_rows;
      for (const int32_t position : PooledPositions(sequence)) {
        pooled_rows.push_back(hidden_row(i, position));
      }
      answer.pooled = MeanOfRows(hidden, pooled_rows);
    }
    auto& work = result.works[flat.work_of_sequence[i]];
    if (!work.ok()) {
      continue;  // another of its sequences failed
    }
    if (!IsFinite(answer)) {
      work = absl::InternalError(
          fmt::format("the model's numbers are not finite for sequence {} of the request",
                      work->sequences.size()));
      continue;
    }
    work->sequences.push_back(std::move(answer));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<const HostModel> host_model,
                                                       const EngineOptions& options,
                                                       const MoeFactory& make_moe) {
  const int thread_count = options.thread_count > 0
                               ? options.thread_count
                               : static_cast<int>(std::thread::hardware_concurrency());
  if (options.chunk_tokens < 1) {
    return absl::InvalidArgumentError(
        fmt::format("chunk_tokens is {}; it must be at least 1", options.chunk_tokens));
  }
  auto pool = std::make_unique<base::ThreadPool>(thread_count, options.cpus);
  ZP_ASSIGN_OR_RETURN(std::unique_ptr<ops::Kernels> kernels, host_model->CreateKernels(*pool));
  std::unique_ptr<experts::ExpertGatherer> experts;
  std::unique_ptr<model::MoeBlock> moe;
  if (make_moe != nullptr) {
    ZP_ASSIGN_OR_RETURN(moe, make_moe(*kernels));
  } else {
    ZP_ASSIGN_OR_RETURN(experts, host_model->OpenExperts(options.rank, options.trace));
    moe = std::make_unique<model::GatheredMoe>(
        host_model->spec().layer_is_moe, host_model->expert_layout(), *experts, *kernels);
  }
  auto engine = std::make_unique<LocalEngine>(std::move(pool),
                                              std::move(kernels),
                                              std::move(host_model),
                                              std::move(experts),
                                              std::move(moe),
                                              options);
  if (options.prefix_cache_bytes != 0) {
    ZP_RETURN_IF_ERROR(engine->OpenPrefixCache(options));
  }
  return engine;
}

}  // namespace zp::engine
