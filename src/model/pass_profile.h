// Where the time of a pass goes: wall seconds by operation.
//
// Thread safety: none; belongs to the engine thread.
#pragma once

#include <array>
#include <chrono>
#include <string_view>

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

class PassProfile {
 public:
  double seconds(Op op) const { return seconds_[static_cast<size_t>(op)]; }

  // Runs `step` and charges its time to `op`.
  template <typename Step>
  decltype(auto) Timed(Op op, Step&& step) {
    const Charge charge(seconds_[static_cast<size_t>(op)]);
    return step();
  }

 private:
  using Clock = std::chrono::steady_clock;

  class Charge {
   public:
    explicit Charge(double& seconds) : seconds_(seconds), begin_(Clock::now()) {}
    ~Charge() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
    Charge(const Charge&) = delete;
    Charge& operator=(const Charge&) = delete;

   private:
    double& seconds_;
    const Clock::time_point begin_;
  };

  std::array<double, static_cast<size_t>(Op::kCount)> seconds_ = {};
};

}  // namespace zp::model
