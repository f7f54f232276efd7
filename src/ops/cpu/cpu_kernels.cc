#include "ops/cpu/cpu_kernels.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "fmt/format.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/expert_ffn.h"
#include "ops/cpu/logits.h"
#include "ops/cpu/onednn_product.h"
#include "ops/cpu/row_kernels.h"

namespace zp::ops::cpu {
namespace {

// A task of row-wise work: some tens of microseconds.
constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kTasksPerThread = 8;
// Where products widen weights: fewer, since each task widens its rows anew.
constexpr int64_t kWidenedTasksPerThread = 2;

int64_t CeilDiv(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

class CpuKernels final : public Kernels {
 public:
  CpuKernels(spec::DType activation_dtype, spec::DType product_dtype, base::ThreadPool& pool)
      : activation_dtype_(activation_dtype),
        pool_(pool),
        product_(activation_dtype, product_dtype, pool.thread_count()),
        expert_ffn_(activation_dtype, product_, pool),
        attention_(activation_dtype, pool),
        name_(activation_dtype == product_dtype
                  ? fmt::format("cpu/{} ({})", NameOf(activation_dtype), product_.name())
                  : fmt::format("cpu/{} weights, {} products ({})",
                                NameOf(activation_dtype),
                                NameOf(product_dtype),
                                product_.name())) {}

  std::string_view name() const override { return name_; }
  spec::DType activation_dtype() const override { return activation_dtype_; }

  std::string layout_name(const std::optional<spec::Fp8Blocks>& fp8) const override {
    const std::string plain =
        fmt::format("{}, panels of {}", product_.layout_name(), product_.panel_columns());
    return fp8.has_value()
               ? fmt::format(
                     "fp8 in blocks of {} x {}, in the order of {}", fp8->rows, fp8->cols, plain)
               : plain;
  }

  size_t packed_bytes(int64_t out_dim, int64_t in_dim) const override {
    return product_.packed_bytes(out_dim, in_dim, /*gated=*/false);
  }

  void Pack(ConstMatrix weight, std::span<std::byte> packed) const override {
    product_.Pack(weight, /*up=*/nullptr, packed);
  }

  ExpertLayout expert_layout(int64_t model_dim,
                             int64_t expert_dim,
                             const std::optional<spec::Fp8Blocks>& fp8) const override {
    return expert_ffn_.Layout(model_dim, expert_dim, fp8);
  }

  void PackExpert(ConstMatrix gate,
                  ConstMatrix up,
                  ConstMatrix down,
                  std::span<std::byte> blob) const override {
    expert_ffn_.Pack(gate, up, down, blob);
  }

  void PackFp8Expert(const Fp8Matrix& gate,
                     const Fp8Matrix& up,
                     const Fp8Matrix& down,
                     std::span<std::byte> blob) const override {
    expert_ffn_.PackFp8(gate, up, down, blob);
  }

  void MatMul(ConstMatrix x, const PackedWeight& weight, Matrix y) override {
    Multiply(x, weight, y, /*add=*/false);
  }

  void MatMulAdd(ConstMatrix x, const PackedWeight& weight, Matrix y) override {
    ZP_CHECK(y.dtype == spec::DType::kF32) << NameOf(y.dtype);
    Multiply(x, weight, y, /*add=*/true);
  }

  void ExpertFfn(ConstMatrix x,
                 const Routing& routing,
                 const ExpertBank& bank,
                 Matrix residual) override {
    expert_ffn_.Run(x, routing, bank, residual);
  }

  void Embed(std::span<const spec::TokenId> tokens, ConstMatrix table, Matrix hidden) override {
    ZP_CHECK(hidden.dtype == spec::DType::kF32 && hidden.cols == table.cols) << hidden.cols;
    ForEachRow(static_cast<int64_t>(tokens.size()), [&](int64_t row) {
      ZP_CHECK(tokens[row] >= 0 && tokens[row] < table.rows) << tokens[row];
      const ConstMatrix source = table.Rows(tokens[row], 1);
      WidenRow(source.data, table.dtype, table.cols, hidden.row<float>(row));
    });
  }

  void RmsNorm(ConstMatrix x, std::span<const float> weight, float epsilon, Matrix y) override {
    ZP_CHECK(x.dtype == spec::DType::kF32 && x.cols == y.cols) << x.cols << " " << y.cols;
    ZP_CHECK(static_cast<int64_t>(weight.size()) == x.cols) << weight.size();
    ForEachRow(x.rows, [&](int64_t row) {
      RmsNormRow(x.row<float>(row), weight.data(), epsilon, x.cols, y.dtype, y.Rows(row, 1).data);
    });
  }

  void HeadNormRope(Matrix heads,
                    int32_t head_dim,
                    std::span<const float> norm_weight,
                    float epsilon,
                    std::span<const int32_t> positions,
                    const RopeTable& rope) override {
    ZP_CHECK(heads.cols % head_dim == 0 && rope.half_dim * 2 == head_dim) << head_dim;
    ZP_CHECK(static_cast<int64_t>(positions.size()) == heads.rows) << positions.size();
    ForEachRow(heads.rows, [&](int64_t row) {
      const int64_t angle = int64_t{positions[row]} * rope.half_dim;
      NormRotateRow({.heads = heads.Rows(row, 1).data,
                     .dtype = heads.dtype,
                     .head_count = heads.cols / head_dim,
                     .head_dim = head_dim,
                     .norm_weight = norm_weight.empty() ? nullptr : norm_weight.data(),
                     .epsilon = epsilon,
                     .cos = rope.cos.data() + angle,
                     .sin = rope.sin.data() + angle,
                     .half_dim = rope.half_dim});
    });
  }

  void RouteExperts(ConstMatrix router_logits, bool normalize, const Routing& routing) override {
    const int64_t k = routing.experts_per_token;
    ZP_CHECK(router_logits.dtype == spec::DType::kF32 && k <= router_logits.cols) << k;
    ForEachRow(router_logits.rows, [&](int64_t row) {
      RouteRow({router_logits.row<float>(row), static_cast<size_t>(router_logits.cols)},
               normalize,
               routing.expert_ids.subspan(row * k, k),
               routing.expert_weights.subspan(row * k, k));
    });
  }

  size_t kv_block_bytes(const AttentionShape& shape) const override {
    return attention_.kv_block_bytes(shape);
  }

  void WriteKv(ConstMatrix k,
               ConstMatrix v,
               std::span<const KvWrite> writes,
               const AttentionShape& shape,
               const KvBlocks& kv) override {
    attention_.WriteKv(k, v, writes, shape, kv);
  }

  void Attend(ConstMatrix q,
              std::span<const AttentionSegment> segments,
              const AttentionShape& shape,
              const KvBlocks& kv,
              Matrix out) override {
    attention_.Attend(q, segments, shape, kv, out);
  }

  void ReduceLogits(ConstMatrix logits,
                    std::span<const LogitAsk> asks,
                    std::span<LogitAnswer> answers) override {
    ZP_CHECK(logits.dtype == spec::DType::kF32) << NameOf(logits.dtype);
    pool_.ParallelFor(logits.rows, [&](int64_t row, int worker) {
      answers[row] =
          ReduceRow({logits.row<float>(row), static_cast<size_t>(logits.cols)}, asks[row]);
    });
  }

  void ColumnLogits(ConstMatrix x,
                    ConstMatrix table,
                    std::span<const spec::TokenId> columns,
                    std::span<float> out) override {
    std::vector<float> wide(x.cols);
    WidenRow(x.data, x.dtype, x.cols, wide.data());
    ForEachRow(static_cast<int64_t>(columns.size()), [&](int64_t i) {
      ZP_CHECK(columns[i] >= 0 && columns[i] < table.rows) << columns[i];
      out[i] = DotRow(wide.data(), table.Rows(columns[i], 1).data, table.dtype, table.cols);
    });
  }

 private:
  template <typename RowTask>
  void ForEachRow(int64_t row_count, RowTask row_task) {
    pool_.ParallelFor(CeilDiv(row_count, kRowsPerTask), [&](int64_t task, int worker) {
      const int64_t end = std::min(row_count, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) {
        row_task(row);
      }
    });
  }

  void Multiply(const ConstMatrix& x, const PackedWeight& weight, const Matrix& y, bool add) {
    ZP_CHECK(x.dtype == activation_dtype_ && x.cols == weight.in_dim) << x.cols;
    ZP_CHECK(y.rows == x.rows && y.cols == weight.out_dim) << y.rows << "x" << y.cols;
    const int64_t panel_count = product_.panel_count(weight.out_dim, /*gated=*/false);
    const int64_t blocks_per_run = product_.blocks_per_run(/*is_fp8=*/false);
    const int64_t run_count = RowRunCount(x.rows, blocks_per_run);
    if (run_count == 0) {
      return;
    }
    const int64_t tasks_per_thread = blocks_per_run > 1 ? kWidenedTasksPerThread : kTasksPerThread;
    const int64_t split_count = std::clamp<int64_t>(
        CeilDiv(tasks_per_thread * pool_.thread_count(), run_count), 1, panel_count);
    pool_.ParallelFor(run_count * split_count, [&](int64_t task, int worker) {
      const RowRange rows = RowRun(x.rows, task / split_count, blocks_per_run);
      const int64_t split = task % split_count;
      product_.Run(worker,
                   {.data = x.Rows(rows.begin, 0).data,
                    .row_stride = x.row_stride,
                    .rows = rows.end - rows.begin},
                   {.data = weight.data, .out_dim = weight.out_dim, .in_dim = weight.in_dim},
                   {.begin = panel_count * split / split_count,
                    .end = panel_count * (split + 1) / split_count},
                   {.data = y.Rows(rows.begin, 0).data,
                    .dtype = y.dtype,
                    .row_stride = y.row_stride,
                    .add = add});
    });
  }

  const spec::DType activation_dtype_;
  base::ThreadPool& pool_;
  OneDnnProduct product_;
  cpu::ExpertFfn expert_ffn_;
  Attention attention_;
  const std::string name_;
};

absl::StatusOr<std::unique_ptr<Kernels>> Create(spec::DType activation_dtype,
                                                spec::DType product_dtype,
                                                base::ThreadPool& pool) {
  if (activation_dtype == spec::DType::kF16) {
    return absl::InvalidArgumentError("activation dtype f16 is not supported: use bf16 or f32");
  }
  std::unique_ptr<Kernels> kernels =
      std::make_unique<CpuKernels>(activation_dtype, product_dtype, pool);
  return kernels;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Kernels>> CreateKernels(spec::DType activation_dtype,
                                                       base::ThreadPool& pool) {
  return Create(activation_dtype, OneDnnProduct::FastestFor(activation_dtype), pool);
}

absl::StatusOr<std::unique_ptr<Kernels>> CreateKernelsWithF32Products(spec::DType activation_dtype,
                                                                      base::ThreadPool& pool) {
  return Create(activation_dtype, spec::DType::kF32, pool);
}

}  // namespace zp::ops::cpu
