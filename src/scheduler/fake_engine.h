// An engine for tests: answers each sequence with one pooled number made of its tokens, records its
// batches, holds what it answered in a prefix cache without end that it can be told to lose, and
// can be held still in the middle of a pass.
#pragma once

#include <condition_variable>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "engine/engine.h"
#include "protocol/block_chain.h"
#include "protocol/work_cost.h"
#include "scheduler/scheduler.h"

namespace zp::scheduler {

class FakeEngine : public engine::Engine {
 public:
  static constexpr protocol::TokenId kInvalidToken = -1;  // Validate refuses it
  // The work of a sequence that begins with it, or ends, fails in Run.
  static constexpr protocol::TokenId kPoisonToken = 666;

  static float AnswerOf(const protocol::Sequence& sequence) {
    return static_cast<float>(
        std::accumulate(sequence.tokens.begin(), sequence.tokens.end(), int64_t{0}));
  }

  const spec::ModelSpec& spec() const override { return spec_; }
  std::string kernels_name() const override { return "fake"; }

  absl::Status Validate(const protocol::Work& work) const override {
    for (const protocol::Sequence& sequence : work.sequences) {
      if (sequence.tokens.empty() || sequence.tokens[0] == kInvalidToken) {
        return absl::InvalidArgumentError("bad tokens");
      }
    }
    return absl::OkStatus();
  }

  absl::Status ConnectHost(int32_t, const std::string&) override { return absl::OkStatus(); }
  engine::BatchResult Run(std::span<const protocol::Work* const> batch) override {
    std::unique_lock lock(mutex_);
    std::vector<std::string>& request_ids = batches_.emplace_back();
    engine::BatchResult result;
    protocol::PassCost pass_cost(spec_);
    for (const protocol::Work* work : batch) {
      request_ids.push_back(work->request_id);
      const protocol::WorkCost cost = pass_cost.Add(*work, HeldTokens(*work));
      result.works.push_back(Answer(*work));
      if (result.works.back().ok()) {
        result.works.back()->usage = {.prompt_tokens = work->token_count(),
                                      .computed_tokens = cost.tokens,
                                      .flops = cost.flops};
      }
      result.report.asked_tokens += work->token_count();
      result.report.computed_tokens += cost.tokens;
      result.report.flops += cost.flops;
    }
    result.report.layers = layers_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return batches_.size() < first_held_; });
    for (size_t i = 0; i < batch.size(); ++i) {
      if (result.works[i].ok()) {
        Keep(*batch[i], result.report.cache_events.stored);
      }
    }
    if (std::exchange(loses_all_, false)) {
      result.report.cache_events = {.is_cleared = true};
      cache_.clear();
    }
    return result;
  }

  // Of the prefix cache, when the pass that runs ends.
  void LoseAll() {
    std::lock_guard lock(mutex_);
    loses_all_ = true;
  }

  // What the passes from now on report.
  void SetLayers(std::vector<engine::LayerReport> layers) {
    std::lock_guard lock(mutex_);
    layers_ = std::move(layers);
  }

  // While held, Run does not return.
  void Hold() { HoldFrom(0); }
  void LetGo() { HoldFrom(kNoBatch); }
  // From the pass of this number on, counted from 1.
  void HoldFrom(size_t batch) {
    {
      std::lock_guard lock(mutex_);
      first_held_ = batch;
    }
    changed_.notify_all();
  }

  // Returns once `count` passes have begun.
  void WaitForBatches(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return batches_.size() >= count; });
  }

  // The request ids of each pass so far.
  std::vector<std::vector<std::string>> batches() {
    std::lock_guard lock(mutex_);
    return batches_;
  }

 private:
  static constexpr size_t kNoBatch = static_cast<size_t>(-1);

  static absl::StatusOr<protocol::WorkResult> Answer(const protocol::Work& work) {
    protocol::WorkResult result;
    for (const protocol::Sequence& sequence : work.sequences) {
      if (sequence.tokens.front() == kPoisonToken || sequence.tokens.back() == kPoisonToken) {
        return absl::InternalError("poisoned");
      }
      result.sequences.push_back({.pooled = {AnswerOf(sequence)}});
    }
    return result;
  }

  std::vector<int32_t> HeldTokens(const protocol::Work& work) const {
    std::vector<int32_t> tokens;
    for (const protocol::Sequence& sequence : work.sequences) {
      int32_t& held = tokens.emplace_back();
      for (const protocol::BlockHash& block : hasher_.Chain(work.cache_salt, sequence.tokens)) {
        held += cache_.contains(block) ? protocol::kBlockTokens : 0;
      }
    }
    return tokens;
  }

  void Keep(const protocol::Work& work, std::vector<protocol::BlockHash>& stored) {
    for (const protocol::Sequence& sequence : work.sequences) {
      for (const protocol::BlockHash& block : hasher_.Chain(work.cache_salt, sequence.tokens)) {
        if (cache_.insert(block).second) {
          stored.push_back(block);
        }
      }
    }
  }

  const spec::ModelSpec spec_ = {.layer_count = 2,
                                 .model_dim = 64,
                                 .vocab_count = 1000,
                                 .max_position_count = 100'000,
                                 .query_head_count = 4,
                                 .kv_head_count = 2,
                                 .head_dim = 16,
                                 .expert_count = 8,
                                 .experts_per_token = 2,
                                 .expert_dim = 32,
                                 .layer_is_moe = {true, true}};
  const protocol::BlockHasher hasher_{SchedulerOptions{}.block_key};
  std::mutex mutex_;
  std::condition_variable changed_;
  absl::flat_hash_set<protocol::BlockHash> cache_;
  bool loses_all_ = false;
  size_t first_held_ = kNoBatch;
  std::vector<engine::LayerReport> layers_;
  std::vector<std::vector<std::string>> batches_;
};

}  // namespace zp::scheduler
