// An engine for tests: answers each sequence with one pooled number made of its tokens, records its
// batches, and can be held still in the middle of a pass.
#pragma once

#include <condition_variable>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "protocol/work_cost.h"

namespace zp::scheduler {

class FakeEngine : public engine::Engine {
 public:
  static constexpr protocol::TokenId kInvalidToken = -1;  // Validate refuses it
  static constexpr protocol::TokenId kPoisonToken = 666;  // its work fails in Run

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
    for (const protocol::Work* work : batch) {
      request_ids.push_back(work->request_id);
      result.works.push_back(Answer(*work));
      result.report.asked_tokens += work->token_count();
      result.report.flops += protocol::CostOf(spec_, *work).flops;
    }
    result.report.computed_tokens = result.report.asked_tokens;
    result.report.layers = layers_;
    result.report.cache_events.stored = {{.high = batches_.size()}};
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_; });
    return result;
  }

  // What the passes from now on report.
  void SetLayers(std::vector<engine::LayerReport> layers) {
    std::lock_guard lock(mutex_);
    layers_ = std::move(layers);
  }

  // While held, Run does not return.
  void Hold() { SetHeld(true); }
  void LetGo() { SetHeld(false); }

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
  static absl::StatusOr<protocol::WorkResult> Answer(const protocol::Work& work) {
    protocol::WorkResult result;
    for (const protocol::Sequence& sequence : work.sequences) {
      if (sequence.tokens[0] == kPoisonToken) {
        return absl::InternalError("poisoned");
      }
      result.sequences.push_back({.pooled = {AnswerOf(sequence)}});
    }
    return result;
  }

  void SetHeld(bool held) {
    {
      std::lock_guard lock(mutex_);
      held_ = held;
    }
    changed_.notify_all();
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
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  std::vector<engine::LayerReport> layers_;
  std::vector<std::vector<std::string>> batches_;
};

}  // namespace zp::scheduler
