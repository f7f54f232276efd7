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
    : activation_dtype_(activation_dtype), product_(product), pool_(pool) {}

ExpertLayout ExpertFfn::Layout(int64_t model_dim, int64_t expert_dim) const {
  ExpertLayout layout{.model_dim = model_dim, .expert_dim = expert_dim};
  layout.down_offset =
      RoundUp(product_.packed_bytes(expert_dim, model_dim, true), kWeightAlignment);
  layout.bytes = RoundUp(layout.down_offset + product_.packed_bytes(model_dim, expert_dim, false),
                         kBlobAlignment);
  return layout;
}

void ExpertFfn::Pack(const ConstMatrix& gate,
                     const ConstMatrix& up,
                     const ConstMatrix& down,
                     std::span<std::byte> blob) const {
  const ExpertLayout layout = Layout(gate.cols, gate.rows);
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
  int64_t block_count = 0;
  for (const ExpertRows& rows : experts_) {
    block_count += RowBlockCount(rows.end - rows.begin);
  }
  const int64_t panel_count = product_.panel_count(expert_dim, true);
  const int64_t split_count = std::clamp<int64_t>(
      CeilDiv(kTasksPerThread * pool_.thread_count(), block_count), 1, panel_count);
  // The largest experts come first, so that the threads end together; the blocks of one follow each
  // other, so that they find its weights in the cache.
  std::vector<ExpertRows> experts = experts_;
  std::stable_sort(experts.begin(), experts.end(), [](const ExpertRows& a, const ExpertRows& b) {
    return a.end - a.begin > b.end - b.begin;
  });
  gate_up_tasks_.clear();
  for (const ExpertRows& rows : experts) {
    const int64_t count = rows.end - rows.begin;
    for (int64_t task = 0; task < RowBlockCount(count) * split_count; ++task) {
      const int64_t block = task / split_count;
      const int64_t split = task % split_count;
      gate_up_tasks_.push_back({.rows = {.expert = rows.expert,
                                         .begin = rows.begin + RowBlockBegin(count, block),
                                         .end = rows.begin + RowBlockBegin(count, block + 1)},
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
                 {.data = blob + bank.layout.gate_up_offset,
                  .out_dim = expert_dim,
                  .in_dim = bank.layout.model_dim,
                  .gated = true},
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
  const int64_t range_count =
      pool_.thread_count() == 1
          ? 1
          : std::clamp<int64_t>(
                CeilDiv(kTasksPerThread / 2 * pool_.thread_count(), strip_count), 1, residual.rows);
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
    for (int64_t block = 0; block < RowBlockCount(end - begin); ++block) {
      const int64_t block_begin = begin + RowBlockBegin(end - begin, block);
      const int64_t block_end = begin + RowBlockBegin(end - begin, block + 1);
      product_.Run(worker,
                   {.data = inner_.data() + block_begin * inner_row_bytes,
                    .row_stride = expert_dim,
                    .rows = block_end - block_begin},
                   {.data = bank.blobs[expert.expert] + bank.layout.down_offset,
                    .out_dim = bank.layout.model_dim,
                    .in_dim = expert_dim},
                   panels,
                   {.data = residual.data,
                    .row_stride = residual.row_stride,
                    .ids = rows_.data() + block_begin,
                    .add = true,
                    .weights = weights_.data() + block_begin});
    }
  }
}

}  // namespace zp::ops::cpu
