#include "ops/cpu/attention.h"

#include <algorithm>
#include <bit>
#include <tuple>

#include "base/check.h"

namespace zp::ops::cpu {
namespace {

// Rows of a task: enough that a tile of K and V is read from L2 many times, few enough that their
// queries and sums stay there beside it.
constexpr int kTaskRows = 256;
constexpr int kTaskGroups = kTaskRows / kGroupRows;
constexpr int64_t kRunsPerTask = 4;  // of up to 16 positions
// Queries and results are asked for so many groups ahead: memory answers in the time of one or two.
constexpr int kPrefetchGroups = 3;
constexpr float kLog2E = 1.44269504f;
// Below any score, and finite: -infinity minus itself is NaN.
constexpr float kNoMax = -1e30f;

const TileKernel& ChooseKernel(spec::DType activation_dtype) {
  ZP_CHECK(activation_dtype != spec::DType::kF16);
  const TileKernel* fast = activation_dtype == spec::DType::kBf16 ? FindBf16Kernel() : nullptr;
  return fast != nullptr ? *fast : PortableKernel(activation_dtype);
}

void CheckShape(const AttentionShape& shape) {
  ZP_CHECK(shape.head_dim > 0 && shape.head_dim % 2 == 0 && shape.head_dim <= kMaxHeadDim)
      << shape.head_dim;
  ZP_CHECK(shape.kv_head_count > 0 && shape.query_head_count % shape.kv_head_count == 0)
      << shape.query_head_count << " / " << shape.kv_head_count;
}

int GroupHeads(const AttentionShape& shape) { return shape.query_head_count / shape.kv_head_count; }

// Memory of one worker, carved from its scratch buffer.
struct TaskMemory {
  std::byte* queries;  // [kTaskGroups] of kGroupBytes
  std::byte* values;   // [kTaskGroups] of kGroupBytes
  float* max;          // [kTaskRows]
  float* sum;          // [kTaskRows]

  static constexpr size_t kBytes =
      2 * kTaskGroups * kGroupBytes + size_t{2} * kTaskRows * sizeof(float);

  explicit TaskMemory(std::byte* data)
      : queries(data),
        values(queries + kTaskGroups * kGroupBytes),
        max(reinterpret_cast<float*>(values + kTaskGroups * kGroupBytes)),
        sum(max + kTaskRows) {}
};

}  // namespace

struct Attention::Call {
  ConstMatrix q;
  Matrix out;
  const AttentionShape& shape;
  const KvBlocks& kv;
};

Attention::Attention(spec::DType activation_dtype, base::ThreadPool& pool)
    : activation_dtype_(activation_dtype),
      pool_(pool),
      kernel_(ChooseKernel(activation_dtype)),
      scratch_(pool.thread_count()) {}

size_t Attention::kv_block_bytes(const AttentionShape& shape) const {
  CheckShape(shape);
  return shape.kv_head_count * kernel_.head_bytes(shape.head_dim);
}

void Attention::WriteKv(ConstMatrix k,
                        ConstMatrix v,
                        std::span<const KvWrite> writes,
                        const AttentionShape& shape,
                        const KvBlocks& kv) {
  CheckShape(shape);
  ZP_CHECK(k.dtype == activation_dtype_ && v.dtype == activation_dtype_);
  const size_t head_bytes = kernel_.head_bytes(shape.head_dim);
  const size_t source_bytes = shape.head_dim * spec::SizeOf(k.dtype);
  FindRuns(writes);
  const auto write_run = [&](std::span<const KvWrite> run_writes) {
    KvRun run;
    run.count = static_cast<int>(run_writes.size());
    run.slot_begin = run_writes[0].slot;
    for (int i = 0; i < run.count; ++i) {
      run.k[i] = k.Rows(run_writes[i].row, 1).data;
      run.v[i] = v.Rows(run_writes[i].row, 1).data;
    }
    for (int head = 0; head < shape.kv_head_count; ++head) {
      kernel_.WriteRun(run,
                       head * source_bytes,
                       shape.head_dim,
                       kv.blocks[run_writes[0].block] + head * head_bytes);
    }
  };
  const auto run_count = static_cast<int64_t>(run_begins_.size()) - 1;
  pool_.ParallelFor((run_count + kRunsPerTask - 1) / kRunsPerTask, [&](int64_t index, int) {
    const int64_t end = std::min(run_count, (index + 1) * kRunsPerTask);
    for (int64_t i = index * kRunsPerTask; i < end; ++i) {
      write_run(writes.subspan(run_begins_[i], run_begins_[i + 1] - run_begins_[i]));
    }
  });
}

// Cuts `writes` where the block changes or the slots are not consecutive.
void Attention::FindRuns(std::span<const KvWrite> writes) {
  run_begins_.clear();
  for (size_t i = 0; i < writes.size(); ++i) {
    if (i == 0 || writes[i].block != writes[i - 1].block ||
        writes[i].slot != writes[i - 1].slot + 1) {
      run_begins_.push_back(i);
    }
  }
  run_begins_.push_back(writes.size());
}

void Attention::Attend(ConstMatrix q,
                       std::span<const AttentionSegment> segments,
                       const AttentionShape& shape,
                       const KvBlocks& kv,
                       Matrix out) {
  CheckShape(shape);
  ZP_CHECK(q.dtype == activation_dtype_ && out.dtype == activation_dtype_);
  ZP_CHECK(shape.scale > 0) << shape.scale;
  PlanTasks(segments, shape);
  const Call call{q, out, shape, kv};
  pool_.ParallelFor(static_cast<int64_t>(tasks_.size()), [&](int64_t index, int worker) {
    RunTask(call, tasks_[index], scratch_[worker]);
  });
}

// Long tasks come first, so that the threads end together; among tasks of like length, those of one
// KV head follow each other and find its K and V in the cache.
void Attention::PlanTasks(std::span<const AttentionSegment> segments, const AttentionShape& shape) {
  tasks_.clear();
  const int32_t task_tokens = std::max(1, kTaskRows / GroupHeads(shape));
  for (const AttentionSegment& segment : segments) {
    const int32_t key_count = segment.position_begin + segment.row_count;
    ZP_CHECK(segment.path.size() * kKvBlockTokens >= static_cast<size_t>(key_count))
        << segment.path.size() << " blocks for " << key_count << " positions";
    for (int32_t begin = 0; begin < segment.row_count; begin += task_tokens) {
      const int32_t count = std::min(task_tokens, segment.row_count - begin);
      for (int32_t head = 0; head < shape.kv_head_count; ++head) {
        tasks_.push_back({&segment, head, begin, count, segment.position_begin + begin + count});
      }
    }
  }
  const auto length_class = [](const Task& task) {
    return std::bit_width(static_cast<uint64_t>(task.key_count) * task.token_count);
  };
  std::stable_sort(tasks_.begin(), tasks_.end(), [&](const Task& a, const Task& b) {
    return std::tuple(length_class(b), a.kv_head) < std::tuple(length_class(a), b.kv_head);
  });
}

// One task: its rows are numbered (token, head of the KV head's group), groups of kGroupRows.
class Attention::TaskRun {
 public:
  TaskRun(const TileKernel& kernel, const Call& call, const Task& task, std::byte* scratch)
      : kernel_(kernel),
        call_(call),
        task_(task),
        memory_(scratch),
        head_dim_(call.shape.head_dim),
        group_heads_(GroupHeads(call.shape)),
        row_count_(task.token_count * group_heads_),
        head_bytes_(kernel.head_bytes(call.shape.head_dim)) {}

  void Run() const {
    for (int32_t tile_begin = 0; tile_begin < task_.key_count; tile_begin += kTileKeys) {
      const KeyTile tile = TileAt(tile_begin);
      for (int row_begin = 0; row_begin < row_count_; row_begin += kGroupRows) {
        AddTile(tile, tile_begin, row_begin);
      }
    }
  }

 private:
  int32_t PositionOf(int row) const {
    return task_.segment->position_begin + task_.token_begin + row / group_heads_;
  }
  // Where the head of `row` begins in q or out.
  template <typename AnyMatrix>
  auto* HeadOf(const AnyMatrix& matrix, int row) const {
    const int64_t matrix_row = task_.segment->row_begin + task_.token_begin + row / group_heads_;
    const int64_t column = (int64_t{task_.kv_head} * group_heads_ + row % group_heads_) * head_dim_;
    return matrix.data + (matrix_row * matrix.row_stride + column) *
                             static_cast<int64_t>(spec::SizeOf(matrix.dtype));
  }

  RowGroup GroupAt(int row_begin) const {
    RowGroup group;
    group.row_count = std::min(kGroupRows, row_count_ - row_begin);
    const size_t offset = row_begin / kGroupRows * kGroupBytes;
    group.query = memory_.queries + offset;
    group.values = reinterpret_cast<float*>(memory_.values + offset);
    group.max = memory_.max + row_begin;
    group.sum = memory_.sum + row_begin;
    return group;
  }

  KeyTile TileAt(int32_t tile_begin) const {
    KeyTile tile;
    const int32_t key_end = std::min(task_.key_count, tile_begin + kTileKeys);
    for (int32_t key = tile_begin; key < key_end; key += kKvBlockTokens) {
      const KvBlockId block = task_.segment->path[key / kKvBlockTokens];
      tile.heads[(key - tile_begin) / kKvBlockTokens] =
          call_.kv.blocks[block] + task_.kv_head * head_bytes_;
    }
    return tile;
  }

  void AddTile(const KeyTile& tile, int32_t tile_begin, int row_begin) const {
    RowGroup group = GroupAt(row_begin);
    group.is_first_tile = tile_begin == 0;
    const int32_t last_position = PositionOf(row_begin + group.row_count - 1);
    if (last_position < tile_begin) {
      return;
    }
    const bool is_last_tile = last_position < tile_begin + kTileKeys;
    if (group.is_first_tile) {
      Begin(row_begin, group);
    }
    if (is_last_tile) {
      PrefetchGroup<1>(call_.out, row_begin);
    }
    for (int i = 0; i < group.row_count; ++i) {
      group.visible[i] = std::clamp(PositionOf(row_begin + i) + 1 - tile_begin, 0, kTileKeys);
    }
    kernel_.AddTile(tile, head_dim_, call_.shape.scale * kLog2E, group);
    if (is_last_tile) {
      Finish(row_begin, group);
    }
  }

  void Begin(int row_begin, RowGroup& group) const {
    const std::byte* q[kGroupRows];
    for (int i = 0; i < group.row_count; ++i) {
      q[i] = HeadOf(call_.q, row_begin + i);
    }
    PrefetchGroup<0>(call_.q, row_begin + kPrefetchGroups * kGroupRows);
    std::fill_n(group.max, kGroupRows, kNoMax);
    std::fill_n(group.sum, kGroupRows, 0.0f);
    kernel_.Begin(q, head_dim_, group);
  }

  void Finish(int row_begin, const RowGroup& group) const {
    std::byte* out[kGroupRows];
    for (int i = 0; i < group.row_count; ++i) {
      out[i] = HeadOf(call_.out, row_begin + i);
    }
    kernel_.Finish(group, head_dim_, out);
  }

  template <int kForWrite, typename AnyMatrix>
  void PrefetchGroup(const AnyMatrix& matrix, int row_begin) const {
    const int64_t row_bytes = head_dim_ * static_cast<int64_t>(spec::SizeOf(matrix.dtype));
    const int row_end = std::min(row_begin + kGroupRows, row_count_);
    for (int row = row_begin; row < row_end; ++row) {
      const std::byte* data = HeadOf(matrix, row);
      for (int64_t offset = 0; offset < row_bytes; offset += 64) {
        __builtin_prefetch(data + offset, kForWrite);
      }
    }
  }

  const TileKernel& kernel_;
  const Call& call_;
  const Task& task_;
  const TaskMemory memory_;
  const int head_dim_;
  const int group_heads_;
  const int row_count_;
  const size_t head_bytes_;
};

void Attention::RunTask(const Call& call, const Task& task, memory::Buffer& scratch) const {
  scratch.EnsureBytes(TaskMemory::kBytes, "attention");
  TaskRun(kernel_, call, task, scratch.data()).Run();
}

}  // namespace zp::ops::cpu
