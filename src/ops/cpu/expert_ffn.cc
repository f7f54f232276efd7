#include "ops/cpu/expert_ffn.h"

#include <algorithm>

#include "base/check.h"

namespace zp::ops::cpu {
namespace {

constexpr size_t kBlobAlignment = 4096;
constexpr size_t kWeightAlignment = 64;
// Scratch for silu(gate) * up: some 10,000 rows of a model with 8 experts of width 768.
constexpr int64_t kInnerBytes = int64_t{128} << 20;
// So many tasks a thread that one thread's bad luck is made up for by the other's.
constexpr int64_t kTasksPerThread = 8;
// Down strips: wide enough for a block of inner rows to be read from L2 most of the time.
constexpr int64_t kStripColumns = 256;
constexpr int64_t kDownTasksPerThread = kTasksPerThread / 2;
// Where weights are widened: fewer ranges of tokens, since each widens the down weights anew.
constexpr int64_t kWidenedDownTasksPerThread = 2;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

int64_t CeilDiv(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

Routing RowsOf(const Routing& routing, int64_t begin, int64_t count) {
  const int64_t k = routing.experts_per_token;
  return {routing.expert_ids.subspan(begin * k, count * k),
          routing.expert_weights.subspan(begin * k, count * k),
          k};
}

}  // namespace

ExpertFfn::ExpertFfn(spec::DType activation_dtype, OneDnnProduct& product, base::ThreadPool& pool)
    : activation_dtype_(activation_dtype), product_(product), pool_(pool), fp8_panels_(product) {}

ExpertLayout ExpertFfn::Layout(int64_t model_dim,
                               int64_t expert_dim,
                               const std::optional<spec::Fp8Blocks>& fp8) const {
  ExpertLayout layout{.model_dim = model_dim, .expert_dim = expert_dim, .fp8_blocks = fp8};
  if (!fp8.has_value()) {
    layout.down_offset =
        RoundUp(product_.packed_bytes(expert_dim, model_dim, true), kWeightAlignment);
    layout.bytes = RoundUp(layout.down_offset + product_.packed_bytes(model_dim, expert_dim, false),
                           kBlobAlignment);
    return layout;
  }
  layout.down_offset =
      RoundUp(fp8_panels_.packed_bytes(expert_dim, model_dim, true), kWeightAlignment);
  layout.scales_offset =
      RoundUp(layout.down_offset + fp8_panels_.packed_bytes(model_dim, expert_dim, false),
              kWeightAlignment);
  const int64_t scale_count = 2 * layout.gate_scale_count() + layout.down_scale_count();
  layout.bytes = RoundUp(layout.scales_offset + scale_count * sizeof(float), kBlobAlignment);
  return layout;
}

void ExpertFfn::Pack(const ConstMatrix& gate,
                     const ConstMatrix& up,
                     const ConstMatrix& down,
                     std::span<std::byte> blob) const {
  const ExpertLayout layout = Layout(gate.cols, gate.rows, std::nullopt);
  ZP_CHECK(blob.size() == layout.bytes) << blob.size() << " != " << layout.bytes;
  ZP_CHECK(up.rows == gate.rows && up.cols == gate.cols) << up.rows << "x" << up.cols;
  ZP_CHECK(down.rows == gate.cols && down.cols == gate.rows) << down.rows << "x" << down.cols;
  product_.Pack(
      gate,
      &up,
      blob.subspan(layout.gate_up_offset, product_.packed_bytes(gate.rows, gate.cols, true)));
  product_.Pack(
      down,
      nullptr,
      blob.subspan(layout.down_offset, product_.packed_bytes(down.rows, down.cols, false)));
}

void ExpertFfn::PackFp8(const Fp8Matrix& gate,
                        const Fp8Matrix& up,
                        const Fp8Matrix& down,
                        std::span<std::byte> blob) const {
  const ExpertLayout layout = Layout(gate.cols, gate.rows, gate.blocks);
  ZP_CHECK(blob.size() == layout.bytes) << blob.size() << " != " << layout.bytes;
  ZP_CHECK(up.rows == gate.rows && up.cols == gate.cols) << up.rows << "x" << up.cols;
  ZP_CHECK(down.rows == gate.cols && down.cols == gate.rows) << down.rows << "x" << down.cols;
  ZP_CHECK(up.blocks == gate.blocks && down.blocks == gate.blocks) << "blocks";
  fp8_panels_.Pack(
      gate,
      &up,
      blob.subspan(layout.gate_up_offset, fp8_panels_.packed_bytes(gate.rows, gate.cols, true)));
  fp8_panels_.Pack(
      down,
      nullptr,
      blob.subspan(layout.down_offset, fp8_panels_.packed_bytes(down.rows, down.cols, false)));
  auto* scales = reinterpret_cast<float*>(blob.data() + layout.scales_offset);
  scales = std::copy_n(gate.scales, layout.gate_scale_count(), scales);
  scales = std::copy_n(up.scales, layout.gate_scale_count(), scales);
  std::copy_n(down.scales, layout.down_scale_count(), scales);
}

void ExpertFfn::Run(const ConstMatrix& x,
                    const Routing& routing,
                    const ExpertBank& bank,
                    const Matrix& residual) {
  const int64_t k = routing.experts_per_token;
  const int64_t expert_dim = bank.layout.expert_dim;
  ZP_CHECK(x.dtype == activation_dtype_ && x.cols == bank.layout.model_dim) << x.cols;
  ZP_CHECK(residual.dtype == spec::DType::kF32 && residual.rows == x.rows) << residual.rows;
  ZP_CHECK(residual.cols == x.cols) << residual.cols;
  if (x.rows == 0) {
    return;
  }
  PrepareParts(bank.layout);
  const auto row_bytes = k * expert_dim * static_cast<int64_t>(spec::SizeOf(activation_dtype_));
  const int64_t chunk_count = CeilDiv(x.rows * row_bytes, kInnerBytes);
  for (int64_t chunk = 0; chunk < chunk_count; ++chunk) {
    const int64_t begin = x.rows * chunk / chunk_count;
    const int64_t count = x.rows * (chunk + 1) / chunk_count - begin;
    inner_.EnsureBytes(static_cast<size_t>(count * row_bytes), "expert activations");
    GroupRows(RowsOf(routing, begin, count), static_cast<int64_t>(bank.blobs.size()));
    if (experts_.empty()) {
      continue;  // no row of this chunk goes to any expert
    }
    PlanGateUp(expert_dim);
    RunGateUp(x.Rows(begin, count), bank);
    RunDown(bank, residual.Rows(begin, count));
  }
}

void ExpertFfn::PrepareParts(const ExpertLayout& layout) {
  gate_up_ = {.offset = layout.gate_up_offset,
              .scales_offset = layout.scales_offset,
              .out_dim = layout.expert_dim,
              .in_dim = layout.model_dim,
              .gated = true};
  down_ = {.offset = layout.down_offset, .out_dim = layout.model_dim, .in_dim = layout.expert_dim};
  blocks_per_run_ = product_.blocks_per_run(layout.fp8_blocks.has_value());
  if (!layout.fp8_blocks.has_value()) {
    return;
  }
  down_.scales_offset = layout.scales_offset + 2 * layout.gate_scale_count() * sizeof(float);
  for (Part* part : {&gate_up_, &down_}) {
    part->plan = &fp8_panels_.PlanFor(part->out_dim, part->in_dim, part->gated, *layout.fp8_blocks);
  }
}

ProductWeight ExpertFfn::WeightOf(const std::byte* blob, const Part& part) {
  return {.data = blob + part.offset,
          .out_dim = part.out_dim,
          .in_dim = part.in_dim,
          .gated = part.gated,
          .fp8_plan = part.plan,
          .fp8_scales = reinterpret_cast<const float*>(blob + part.scales_offset)};
}

void ExpertFfn::GroupRows(const Routing& routing, int64_t expert_count) {
  std::vector<int64_t> ends(expert_count + 1);
  for (const int32_t expert : routing.expert_ids) {
    ZP_CHECK(expert >= Routing::kNoExpert && expert < expert_count) << expert;
    if (expert != Routing::kNoExpert) {
      ++ends[expert + 1];
    }
  }
  experts_.clear();
  for (int64_t expert = 0; expert < expert_count; ++expert) {
    const int64_t begin = ends[expert];
    ends[expert + 1] += begin;
    if (ends[expert + 1] > begin) {
      experts_.push_back({static_cast<int32_t>(expert), begin, ends[expert + 1]});
    }
  }
  rows_.resize(routing.expert_ids.size());
  weights_.resize(routing.expert_ids.size());
  for (size_t pair = 0; pair < routing.expert_ids.size(); ++pair) {
    if (routing.expert_ids[pair] == Routing::kNoExpert) {
      continue;
    }
    const int64_t place = ends[routing.expert_ids[pair]]++;
    rows_[place] = static_cast<int32_t>(static_cast<int64_t>(pair) / routing.experts_per_token);
    weights_[place] = routing.expert_weights[pair];
  }
}

void ExpertFfn::PlanGateUp(int64_t expert_dim) {
  const auto row_task_count = [&](const ExpertRows& rows) {
    return RowRunCount(rows.end - rows.begin, blocks_per_run_);
  };
  int64_t row_tasks = 0;
  for (const ExpertRows& rows : experts_) {
    row_tasks += row_task_count(rows);
  }
  const int64_t panel_count = product_.panel_count(expert_dim, true);
  const int64_t split_count = std::clamp<int64_t>(
      CeilDiv(kTasksPerThread * pool_.thread_count(), row_tasks), 1, panel_count);
  // The largest experts come first, so that the threads end together; the blocks of one follow each
  // other, so that they find its weights in the cache.
  std::vector<ExpertRows> experts = experts_;
  std::stable_sort(experts.begin(), experts.end(), [](const ExpertRows& a, const ExpertRows& b) {
    return a.end - a.begin > b.end - b.begin;
  });
  gate_up_tasks_.clear();
  for (const ExpertRows& rows : experts) {
    const int64_t count = rows.end - rows.begin;
    for (int64_t task = 0; task < row_task_count(rows) * split_count; ++task) {
      const RowRange run = RowRun(count, task / split_count, blocks_per_run_);
      const int64_t split = task % split_count;
      gate_up_tasks_.push_back({.rows = {.expert = rows.expert,
                                         .begin = rows.begin + run.begin,
                                         .end = rows.begin + run.end},
                                .panels = {.begin = panel_count * split / split_count,
                                           .end = panel_count * (split + 1) / split_count}});
    }
  }
}

void ExpertFfn::RunGateUp(const ConstMatrix& x, const ExpertBank& bank) {
  const int64_t expert_dim = bank.layout.expert_dim;
  const auto inner_row_bytes = expert_dim * static_cast<int64_t>(spec::SizeOf(activation_dtype_));
  const auto run_task = [&](int64_t index, int worker) {
    const GateUpTask& task = gate_up_tasks_[index];
    const std::byte* blob = bank.blobs[task.rows.expert];
    ZP_CHECK(blob != nullptr) << "expert " << task.rows.expert;
    product_.Run(worker,
                 {.data = x.data,
                  .row_stride = x.row_stride,
                  .ids = rows_.data() + task.rows.begin,
                  .rows = task.rows.end - task.rows.begin},
                 WeightOf(blob, gate_up_),
                 task.panels,
                 {.data = inner_.data() + task.rows.begin * inner_row_bytes,
                  .dtype = activation_dtype_,
                  .row_stride = expert_dim});
  };
  pool_.ParallelFor(static_cast<int64_t>(gate_up_tasks_.size()), run_task);
}

void ExpertFfn::RunDown(const ExpertBank& bank, const Matrix& residual) {
  const int64_t panel_count = product_.panel_count(bank.layout.model_dim, false);
  const int64_t strip_panels = std::max<int64_t>(kStripColumns / product_.panel_columns(), 1);
  const int64_t strip_count = CeilDiv(panel_count, strip_panels);
  // Ranges of tokens make more tasks where strips alone are too few, but shrink each product.
  const int64_t tasks_per_thread =
      blocks_per_run_ > 1 ? kWidenedDownTasksPerThread : kDownTasksPerThread;
  const int64_t range_count =
      pool_.thread_count() == 1
          ? 1
          : std::clamp<int64_t>(
                CeilDiv(tasks_per_thread * pool_.thread_count(), strip_count), 1, residual.rows);
  const auto run_task = [&](int64_t index, int worker) {
    const int64_t range = index / strip_count;
    const int64_t strip = index % strip_count;
    RunDownStrip(worker,
                 bank,
                 {.begin = panel_count * strip / strip_count,
                  .end = panel_count * (strip + 1) / strip_count},
                 residual.rows * range / range_count,
                 residual.rows * (range + 1) / range_count,
                 residual);
  };
  pool_.ParallelFor(strip_count * range_count, run_task);
}

void ExpertFfn::RunDownStrip(int worker,
                             const ExpertBank& bank,
                             PanelRange panels,
                             int64_t token_begin,
                             int64_t token_end,
                             const Matrix& residual) {
  const int64_t expert_dim = bank.layout.expert_dim;
  const auto inner_row_bytes = expert_dim * static_cast<int64_t>(spec::SizeOf(activation_dtype_));
  for (const ExpertRows& expert : experts_) {
    const auto first = rows_.begin() + expert.begin;
    const auto last = rows_.begin() + expert.end;
    const int64_t begin = std::lower_bound(first, last, token_begin) - rows_.begin();
    const int64_t end = std::lower_bound(first, last, token_end) - rows_.begin();
    if (begin == end) {
      continue;
    }
    for (int64_t run = 0; run < RowRunCount(end - begin, blocks_per_run_); ++run) {
      const RowRange rows = RowRun(end - begin, run, blocks_per_run_);
      product_.Run(worker,
                   {.data = inner_.data() + (begin + rows.begin) * inner_row_bytes,
                    .row_stride = expert_dim,
                    .rows = rows.end - rows.begin},
                   WeightOf(bank.blobs[expert.expert], down_),
                   panels,
                   {.data = residual.data,
                    .row_stride = residual.row_stride,
                    .ids = rows_.data() + begin + rows.begin,
                    .add = true,
                    .weights = weights_.data() + begin + rows.begin});
    }
  }
}

}  // namespace zp::ops::cpu
