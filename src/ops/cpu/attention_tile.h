// The inner part of attention: a few query rows against one tile of keys.
//
// Separate so that attention.cc (who computes what, in which order) is written once, and the
// arithmetic once per kind of CPU. A kernel also owns the layout of K and V within a block.
//
// What bit-equal answers rest on: every row of a group is computed by the same chain of operations
// whatever the number of rows, and keys that a row does not see add a weight of exactly zero.
//
// Thread safety: kernels have no state. Ownership: all memory is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/kernels.h"
#include "ops/matrix.h"

namespace zp::ops::cpu {

// Query rows computed together. 8 rows x 3 vectors of 16 are 24 accumulators: with 3 vectors of
// keys and one of the query they fill 28 of the 32 registers.
inline constexpr int kGroupRows = 8;
// Blocks in a tile of keys. Tiles begin at multiples of kTileKeys positions, everywhere.
inline constexpr int kTileBlocks = 12;
inline constexpr int kTileKeys = kTileBlocks * kKvBlockTokens;
inline constexpr int kMaxHeadDim = 256;
inline constexpr int kVectorDims = 16;
// Room for the queries of a group, and for its values.
inline constexpr size_t kGroupBytes = size_t{kGroupRows} * kMaxHeadDim * sizeof(float);

// The part of one head in the blocks of a tile.
struct KeyTile {
  const std::byte* heads[kTileBlocks];  // only those that some row sees need be set
};

// Up to kGroupRows rows of query heads that share one KV head, and what they have gathered so far.
struct RowGroup {
  int row_count = 0;
  std::byte* query = nullptr;    // kGroupBytes in the kernel's own layout
  float* values = nullptr;       // sum of weight * v: [head_dim / 16 rounded up][kGroupRows][16]
  float* max = nullptr;          // [kGroupRows] largest q.k so far
  float* sum = nullptr;          // [kGroupRows] sum of weights
  bool is_first_tile = false;    // `values` holds nothing yet
  int visible[kGroupRows] = {};  // keys of the tile that a row sees: the first ones
};

// K and V of up to 16 consecutive positions of one block.
struct KvRun {
  const std::byte* k[kKvBlockTokens];  // rows of the activations
  const std::byte* v[kKvBlockTokens];
  int count = 0;
  int slot_begin = 0;
};

class TileKernel {
 public:
  virtual ~TileKernel() = default;

  // K and V of one head in one block; a multiple of 64.
  virtual size_t head_bytes(int head_dim) const = 0;

  // Puts the columns at `column_bytes` of a run's rows into the block of one head.
  virtual void WriteRun(const KvRun& run,
                        size_t column_bytes,
                        int head_dim,
                        std::byte* head) const = 0;

  // Takes in the queries: q [row_count] pointers to [head_dim] elements.
  virtual void Begin(const std::byte* const* q, int head_dim, RowGroup& group) const = 0;

  // Adds the visible keys of a tile. `scale` is that of the scores times log2(e). At least one row
  // must see at least one key.
  virtual void AddTile(const KeyTile& tile, int head_dim, float scale, RowGroup& group) const = 0;

  // values / sum of every row in the activations' format: out [row_count] pointers.
  virtual void Finish(const RowGroup& group, int head_dim, std::byte* const* out) const = 0;
};

// bf16 activations and blocks, on CPUs with AVX512_BF16; null elsewhere.
const TileKernel* FindBf16Kernel();
// f32 blocks and arithmetic, on any CPU; activations in bf16 or f32.
const TileKernel& PortableKernel(spec::DType activation_dtype);

}  // namespace zp::ops::cpu
