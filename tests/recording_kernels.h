// Kernels that pass every call on and keep which experts were chosen.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/kernels.h"

namespace zp::tests {

class RecordingKernels : public ops::Kernels {
 public:
  explicit RecordingKernels(std::unique_ptr<ops::Kernels> kernels) : kernels_(std::move(kernels)) {}

  std::vector<std::vector<int32_t>>
      routings;  // one per call of RouteExperts: [rows, experts_per_token]

  std::string_view name() const override { return kernels_->name(); }
  spec::DType activation_dtype() const override { return kernels_->activation_dtype(); }
  size_t packed_bytes(int64_t out_dim, int64_t in_dim) const override {
    return kernels_->packed_bytes(out_dim, in_dim);
  }
  void Pack(ops::ConstMatrix weight, std::span<std::byte> packed) const override {
    kernels_->Pack(weight, packed);
  }
  std::string layout_name(const std::optional<spec::Fp8Blocks>& fp8) const override {
    return kernels_->layout_name(fp8);
  }
  ops::ExpertLayout expert_layout(int64_t model_dim,
                                  int64_t expert_dim,
                                  const std::optional<spec::Fp8Blocks>& fp8) const override {
    return kernels_->expert_layout(model_dim, expert_dim, fp8);
  }
  void PackExpert(ops::ConstMatrix gate,
                  ops::ConstMatrix up,
                  ops::ConstMatrix down,
                  std::span<std::byte> blob) const override {
    kernels_->PackExpert(gate, up, down, blob);
  }
  void PackFp8Expert(const ops::Fp8Matrix& gate,
                     const ops::Fp8Matrix& up,
                     const ops::Fp8Matrix& down,
                     std::span<std::byte> blob) const override {
    kernels_->PackFp8Expert(gate, up, down, blob);
  }
  void MatMul(ops::ConstMatrix x, const ops::PackedWeight& weight, ops::Matrix y) override {
    kernels_->MatMul(x, weight, y);
  }
  void MatMulAdd(ops::ConstMatrix x, const ops::PackedWeight& weight, ops::Matrix y) override {
    kernels_->MatMulAdd(x, weight, y);
  }
  void ExpertFfn(ops::ConstMatrix x,
                 const ops::Routing& routing,
                 const ops::ExpertBank& bank,
                 ops::Matrix residual) override {
    kernels_->ExpertFfn(x, routing, bank, residual);
  }
  void Embed(std::span<const spec::TokenId> tokens,
             ops::ConstMatrix table,
             ops::Matrix hidden) override {
    kernels_->Embed(tokens, table, hidden);
  }
  void RmsNorm(ops::ConstMatrix x,
               std::span<const float> weight,
               float epsilon,
               ops::Matrix y) override {
    kernels_->RmsNorm(x, weight, epsilon, y);
  }
  void HeadNormRope(ops::Matrix heads,
                    int32_t head_dim,
                    std::span<const float> norm_weight,
                    float epsilon,
                    std::span<const int32_t> positions,
                    const ops::RopeTable& rope) override {
    kernels_->HeadNormRope(heads, head_dim, norm_weight, epsilon, positions, rope);
  }
  void RouteExperts(ops::ConstMatrix router_logits,
                    bool normalize,
                    const ops::Routing& routing) override {
    kernels_->RouteExperts(router_logits, normalize, routing);
    routings.emplace_back(routing.expert_ids.begin(), routing.expert_ids.end());
  }
  size_t kv_block_bytes(const ops::AttentionShape& shape) const override {
    return kernels_->kv_block_bytes(shape);
  }
  void WriteKv(ops::ConstMatrix k,
               ops::ConstMatrix v,
               std::span<const ops::KvWrite> writes,
               const ops::AttentionShape& shape,
               const ops::KvBlocks& kv) override {
    kernels_->WriteKv(k, v, writes, shape, kv);
  }
  void Attend(ops::ConstMatrix q,
              std::span<const ops::AttentionSegment> segments,
              const ops::AttentionShape& shape,
              const ops::KvBlocks& kv,
              ops::Matrix out) override {
    kernels_->Attend(q, segments, shape, kv, out);
  }
  void ReduceLogits(ops::ConstMatrix logits,
                    std::span<const ops::LogitAsk> asks,
                    std::span<ops::LogitAnswer> answers) override {
    kernels_->ReduceLogits(logits, asks, answers);
  }
  void ColumnLogits(ops::ConstMatrix x,
                    ops::ConstMatrix table,
                    std::span<const spec::TokenId> columns,
                    std::span<float> out) override {
    kernels_->ColumnLogits(x, table, columns, out);
  }

 private:
  const std::unique_ptr<ops::Kernels> kernels_;
};

}  // namespace zp::tests
