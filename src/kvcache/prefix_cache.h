// K and V of prefixes that were computed before, all layers of 16 tokens to a block, within a hard
// budget of bytes.
//
// A pass begins with Begin: what is held of its sequences is pinned, and places are reserved for
// what is worth holding of the rest; the forward pass reads and writes K and V where they lie.
// It ends with Publish: what the answered sequences went through is held from then on.
//
// Thread safety: none; engine thread only.
// Ownership: owns the bytes. Outlives its passes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "kvcache/block_index.h"
#include "memory/buffer.h"
#include "protocol/block_chain.h"
#include "protocol/work.h"
#include "spec/model_spec.h"

namespace zp::kvcache {

struct PrefixCacheOptions {
  int64_t budget_bytes = 0;
  double salt_fraction = 1.0;    // see BlockIndexOptions
  uint64_t block_key = 0;        // of the names (protocol::BlockHasher)
  size_t layer_block_bytes = 0;  // K and V of 16 tokens in one layer; a multiple of 64
};

// A sequence of a pass and who it belongs to.
struct CachedSequence {
  const protocol::Sequence* sequence = nullptr;
  std::string_view salt;
};

class PrefixCache {
 public:
  // What one pass uses. Its end unpins all; what was not published is given back.
  class Pass {
   public:
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

    // The blocks of this pass: K and V of layer l lie at blocks()[i] + l * layer_block_bytes.
    std::span<std::byte* const> blocks() const { return blocks_; }
    // The first blocks of sequence i, as indices into blocks(). The first held_count(i) of them are
    // held and only read; the pass writes the others.
    std::span<const int32_t> path(size_t sequence) const { return plans_[sequence].path; }
    int32_t held_count(size_t sequence) const { return plans_[sequence].held_count; }

    // Call when every block is written: holds those through which an answered sequence went, up to
    // the last position that it asked about. (A finite answer says that K and V before it are.)
    void Publish(std::span<const uint8_t> is_answered);

   private:
    friend class PrefixCache;
    // A block of a distinct prefix of this pass.
    struct Node {
      protocol::BlockHash name;
      int32_t parent = 0;  // a node; below 0: the root of a salt
      int32_t depth = 0;
      size_t sequence = 0;         // one that goes through it
      int32_t sequence_count = 0;  // that ask about something after it
      BlockId block = kNoBlock;
      bool is_held = false;
      int32_t index = -1;  // into blocks_
    };
    struct SequencePlan {
      std::vector<int32_t> nodes;  // of its first blocks
      std::vector<int32_t> path;   // those of them that have a place, as indices into blocks_
      int32_t held_count = 0;
      int32_t keep_count = 0;  // blocks that its answer vouches for
    };

    Pass(PrefixCache& cache, std::span<const CachedSequence> sequences);
    void AddNodes(size_t sequence);
    bool IsSame(const Node& node, int32_t parent, size_t sequence, int32_t depth) const;
    void ReserveNew();
    void LayPaths();

    PrefixCache& cache_;
    const std::vector<CachedSequence> sequences_;
    std::vector<Node> nodes_;
    std::vector<SequencePlan> plans_;
    std::vector<std::byte*> blocks_;
    absl::flat_hash_map<protocol::BlockHash, int32_t> node_by_name_;
    absl::flat_hash_map<std::string_view, int32_t> roots_;
  };

  // InvalidArgument if the budget does not hold one block (the message says how large one is), or
  // if salt_fraction is not in (0, 1].
  static absl::StatusOr<std::unique_ptr<PrefixCache>> Create(const spec::ModelSpec& spec,
                                                             const PrefixCacheOptions& options);

  // What waits for a later pass, see BlockIndex: call before Begin, so that this pass makes room
  // elsewhere.
  void Await(const protocol::AwaitedChanges& changes) { index_.Await(changes); }

  // REQUIRES: the pass before is gone; the sequences outlive the pass.
  std::unique_ptr<Pass> Begin(std::span<const CachedSequence> sequences);

  // What was evicted and published since the last call.
  protocol::CacheEvents TakeEvents() { return index_.TakeEvents(); }

  int64_t held_bytes() const { return int64_t{index_.held_blocks()} * block_bytes_; }
  const BlockIndex& index() const { return index_; }

 private:
  PrefixCache(const BlockIndexOptions& index_options,
              const PrefixCacheOptions& options,
              int64_t block_bytes);

  const protocol::BlockHasher hasher_;
  const int64_t block_bytes_;  // of all layers
  BlockIndex index_;
  memory::Buffer bytes_;
};

}  // namespace zp::kvcache
