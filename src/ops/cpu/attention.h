// Attention over a token trie on a CPU: softmax attention of query rows to the K and V on the path
// from the root to their position.
//
// Keys are taken in tiles cut at absolute positions and every row's chain of operations is fixed by
// its position alone: a row's result is bit-equal alone and in any company, with any number of
// threads. See docs/decisions/0004-attention.md.
//
// Thread safety: one thread calls WriteKv and Attend; kv_block_bytes from any thread.
// Ownership: scratch memory is the object's; `pool` must outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "memory/buffer.h"
#include "ops/cpu/attention_tile.h"
#include "ops/kernels.h"
#include "ops/matrix.h"
#include "spec/dtype.h"

namespace zp::ops::cpu {

class Attention {
 public:
  // activation_dtype: kBf16 or kF32.
  Attention(spec::DType activation_dtype, base::ThreadPool& pool);

  // As in ops/kernels.h. REQUIRES of every shape: head_dim even and at most kMaxHeadDim,
  // kv_head_count divides query_head_count, scale > 0.
  size_t kv_block_bytes(const AttentionShape& shape) const;
  // A K or V that is not finite makes NaN of every row that sees it, and of no other.
  void WriteKv(ConstMatrix k,
               ConstMatrix v,
               std::span<const KvWrite> writes,
               const AttentionShape& shape,
               const KvBlocks& kv);
  void Attend(ConstMatrix q,
              std::span<const AttentionSegment> segments,
              const AttentionShape& shape,
              const KvBlocks& kv,
              Matrix out);

 private:
  // Some rows of one segment, for one KV head.
  struct Task {
    const AttentionSegment* segment = nullptr;
    int32_t kv_head = 0;
    int32_t token_begin = 0;  // offset within the segment
    int32_t token_count = 0;
    int32_t key_count = 0;  // that its last row sees
  };
  struct Call;
  class TaskRun;

  void FindRuns(std::span<const KvWrite> writes);
  void PlanTasks(std::span<const AttentionSegment> segments, const AttentionShape& shape);
  void RunTask(const Call& call, const Task& task, memory::Buffer& scratch) const;

  const spec::DType activation_dtype_;
  base::ThreadPool& pool_;
  const TileKernel& kernel_;
  std::vector<size_t> run_begins_;  // of writes into consecutive slots; the last is their count
  std::vector<Task> tasks_;
  std::vector<memory::Buffer> scratch_;  // [thread_count]
};

}  // namespace zp::ops::cpu
