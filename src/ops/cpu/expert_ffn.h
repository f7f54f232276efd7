// The feed-forward block of a layer: every row through its experts, grouped by expert.
//
// Two passes over the experts that were hit. The first writes silu(gate) * up of every (row,
// expert) pair, sorted by expert. The second takes a strip of output columns at a time through all
// experts in rising order and adds each weighted product to the residual where it belongs. So no
// two threads write one place, a row's sum has an order of its own, and no buffer of
// [rows * experts_per_token, model_dim] is needed.
//
// Where the product widens weights, a task has more rows (OneDnnProduct::blocks_per_run), and there
// are fewer ranges of tokens: each widens the down weights anew. Only what is hit is widened.
//
// Thread safety: layout and packing are const and may run anywhere; Run from one thread.
// Ownership: scratch memory is the object's; `product` and `pool` must outlive it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/thread_pool.h"
#include "memory/buffer.h"
#include "ops/cpu/fp8_panels.h"
#include "ops/cpu/onednn_product.h"
#include "ops/kernels.h"

namespace zp::ops::cpu {

class ExpertFfn {
 public:
  ExpertFfn(spec::DType activation_dtype, OneDnnProduct& product, base::ThreadPool& pool);

  ExpertLayout Layout(int64_t model_dim,
                      int64_t expert_dim,
                      const std::optional<spec::Fp8Blocks>& fp8) const;
  void Pack(const ConstMatrix& gate,
            const ConstMatrix& up,
            const ConstMatrix& down,
            std::span<std::byte> blob) const;
  void PackFp8(const Fp8Matrix& gate,
               const Fp8Matrix& up,
               const Fp8Matrix& down,
               std::span<std::byte> blob) const;
  // As Kernels::ExpertFfn; a row's experts are summed in rising order of their ids.
  void Run(const ConstMatrix& x,
           const Routing& routing,
           const ExpertBank& bank,
           const Matrix& residual);

 private:
  // The rows of `x` that go to one expert: [begin, end) of rows_, weights_ and inner_.
  struct ExpertRows {
    int32_t expert = 0;
    int64_t begin = 0;
    int64_t end = 0;
  };
  struct GateUpTask {
    ExpertRows rows;
    PanelRange panels;
  };
  // One of the two packed weights of an expert.
  struct Part {
    size_t offset = 0;         // in the blob
    size_t scales_offset = 0;  // in the blob, of 8-bit numbers
    int64_t out_dim = 0;
    int64_t in_dim = 0;
    bool gated = false;
    const WidenPlan* plan = nullptr;  // of 8-bit numbers
  };

  // Which parts the bank's experts have.
  void PrepareParts(const ExpertLayout& layout);
  static ProductWeight WeightOf(const std::byte* blob, const Part& part);
  void GroupRows(const Routing& routing, int64_t expert_count);
  void PlanGateUp(int64_t expert_dim);
  void RunGateUp(const ConstMatrix& x, const ExpertBank& bank);
  void RunDown(const ExpertBank& bank, const Matrix& residual);
  void RunDownStrip(int worker,
                    const ExpertBank& bank,
                    PanelRange panels,
                    int64_t token_begin,
                    int64_t token_end,
                    const Matrix& residual);

  const spec::DType activation_dtype_;
  OneDnnProduct& product_;
  base::ThreadPool& pool_;
  const Fp8Panels fp8_panels_;

  Part gate_up_;
  Part down_;
  int64_t blocks_per_run_ = 1;
  std::vector<ExpertRows> experts_;  // those with rows, by rising id
  std::vector<int32_t> rows_;        // [rows * experts_per_token], by expert, then rising
  std::vector<float> weights_;       // beside rows_
  std::vector<GateUpTask> gate_up_tasks_;
  memory::Buffer inner_;  // [rows * experts_per_token, expert_dim], as rows_
};

}  // namespace zp::ops::cpu
