// Where the time of a pass goes: wall seconds by operation and by layer, and how the banks came.
//
// Thread safety: none; belongs to the engine thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/trace.h"

namespace zp::model {

enum class Op {
  kEmbed,
  kNorm,
  kQkv,
  kRope,
  kKvWrite,
  kAttention,
  kAttentionOut,
  kRouter,
  kWeightWait,
  kFfn,
  kLogits,
  kCount
};

constexpr std::array<std::string_view, static_cast<size_t>(Op::kCount)> kOpNames = {"embed",
                                                                                    "norm",
                                                                                    "qkv",
                                                                                    "rope",
                                                                                    "kv_write",
                                                                                    "attention",
                                                                                    "attention_out",
                                                                                    "router",
                                                                                    "weight_wait",
                                                                                    "ffn",
                                                                                    "logits"};

struct LayerProfile {
  double compute_seconds = 0;
  double exposed_wait_seconds = 0;
  double gather_seconds = 0;  // of its bank, most of it behind the layers before
  int64_t gathered_bytes = 0;
};

class PassProfile {
 public:
  using Clock = std::chrono::steady_clock;

  // `trace` may be null.
  explicit PassProfile(base::Trace* trace = nullptr, int32_t rank = 0)
      : trace_(trace), rank_(rank) {}

  void Clear(int32_t layer_count, size_t source_count) {
    seconds_ = {};
    layers_.assign(layer_count, {});
    source_bytes_.assign(source_count, 0);
    layer_ = kNoLayer;
  }

  // What follows belongs to this layer.
  void BeginLayer(int32_t layer) { layer_ = layer; }
  void EndLayers() { layer_ = kNoLayer; }

  // Runs `step` and charges its time to `op` and the layer.
  template <typename Step>
  decltype(auto) Timed(Op op, Step&& step) {
    const Charge charge(*this, op);
    return step();
  }

  // Of the layer's bank; once a layer.
  void RecordGather(double seconds, int64_t bytes, const std::vector<int64_t>& bytes_by_source) {
    layers_[layer_].gather_seconds = seconds;
    layers_[layer_].gathered_bytes = bytes;
    for (size_t source = 0; source < source_bytes_.size(); ++source) {
      source_bytes_[source] += bytes_by_source[source];
    }
  }

  double seconds(Op op) const { return seconds_[static_cast<size_t>(op)]; }
  const std::vector<LayerProfile>& layers() const { return layers_; }
  const std::vector<int64_t>& source_bytes() const { return source_bytes_; }

 private:
  static constexpr int32_t kNoLayer = -1;

  class Charge {
   public:
    Charge(PassProfile& profile, Op op) : profile_(profile), op_(op), begin_(Clock::now()) {}
    ~Charge() { profile_.Add(op_, begin_, Clock::now()); }
    Charge(const Charge&) = delete;
    Charge& operator=(const Charge&) = delete;

   private:
    PassProfile& profile_;
    const Op op_;
    const Clock::time_point begin_;
  };

  void Add(Op op, Clock::time_point begin, Clock::time_point end) {
    const double seconds = std::chrono::duration<double>(end - begin).count();
    seconds_[static_cast<size_t>(op)] += seconds;
    if (layer_ != kNoLayer) {
      LayerProfile& layer = layers_[layer_];
      (op == Op::kWeightWait ? layer.exposed_wait_seconds : layer.compute_seconds) += seconds;
    }
    if (trace_ != nullptr) {
      trace_->Add({.track = "compute",
                   .name = kOpNames[static_cast<size_t>(op)],
                   .rank = rank_,
                   .layer = layer_,
                   .begin = begin,
                   .end = end});
    }
  }

  base::Trace* const trace_;
  const int32_t rank_;
  int32_t layer_ = kNoLayer;
  std::array<double, static_cast<size_t>(Op::kCount)> seconds_ = {};
  std::vector<LayerProfile> layers_;
  std::vector<int64_t> source_bytes_;
};

}  // namespace zp::model
