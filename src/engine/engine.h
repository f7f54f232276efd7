// Run(batch): units of tokenized work in, the rows they asked for out. One forward pass over the
// trie of all their tokens.
//
// Thread safety: Run from one thread (the rank's engine thread). Validate and spec from any thread.
// Ownership: the engine shares the host's model with the other ranks of the process; it owns its
// window, its prefix cache, its kernels and its compute threads.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/trace.h"
#include "engine/host_model.h"
#include "model/moe_block.h"
#include "protocol/awaited_blocks.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "spec/model_spec.h"

namespace zp::engine {

struct EngineOptions {
  int32_t rank = 0;      // of this process; names the engine in traces and metrics
  int thread_count = 0;  // compute threads; 0 = one per core
  // The cores that the compute threads keep to, one each; empty: where the system puts them.
  std::vector<int> cpus = {};
  int64_t chunk_tokens =
      8192;  // rows that go through a layer's step at once: bounds activation memory
  base::Trace* trace = nullptr;  // may be null; must outlive the engine
  // K and V of prefixes, kept from pass to pass; 0: none, and nothing is paid for it.
  int64_t prefix_cache_bytes = 0;
  // Of those, what works of one cache_salt may take; works without one may take all.
  double prefix_cache_quota = 1.0;
  // Of the names of prefixes in CacheEvents (protocol::BlockHasher).
  uint64_t block_key = 0;
};

// What one layer of a pass cost.
struct LayerReport {
  double compute_seconds = 0;
  double exposed_wait_seconds = 0;
  double gather_seconds = 0;  // of its bank, from the first read to the last byte
  int64_t gathered_bytes = 0;
};

// What one pass did and what it cost.
struct PassReport {
  int64_t asked_tokens = 0;     // over all sequences of all work
  int64_t computed_tokens = 0;  // after sharing prefixes; asked / computed is the sharing factor
  int64_t cached_tokens = 0;    // that came from the prefix cache
  double flops = 0;             // true FLOPs of the pass (spec/flops.h)
  double seconds = 0;
  double exposed_wait_seconds = 0;              // compute stood still for weights
  std::map<std::string, double> seconds_by_op;  // wall time
  std::vector<LayerReport> layers;
  std::map<std::string, int64_t> gathered_bytes_by_source;
  // Of the prefix cache; all 0 without one.
  int64_t cache_queried_tokens = 0;  // cached + computed: what it could have held at best
  int64_t cache_held_bytes = 0;      // after the pass
  protocol::CacheEvents cache_events;
};

struct BatchResult {
  std::vector<absl::StatusOr<protocol::WorkResult>> works;  // in the batch's order
  PassReport report;
};

using MoeFactory =
    std::function<absl::StatusOr<std::unique_ptr<model::MoeBlock>>(ops::Kernels& kernels)>;

class Engine {
 public:
  // One rank of a loaded model. `make_moe` makes its MoE block on the engine's kernels; by default
  // the experts are gathered as the host model places them.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::shared_ptr<const HostModel> host_model,
                                                        const EngineOptions& options,
                                                        const MoeFactory& make_moe = nullptr);
  virtual ~Engine() = default;

  virtual const spec::ModelSpec& spec() const = 0;
  virtual std::string kernels_name() const = 0;
  // Tokens whose K and V the prefix cache has room for, as the kernels lay them out; 0: there is no
  // cache.
  virtual int64_t prefix_cache_tokens() const { return 0; }

  // Whether Run will accept this work: token ids within the vocabulary, lengths within
  // max_position_count, row positions inside their sequence and rising. InvalidArgument names the
  // sequence and the limit.
  virtual absl::Status Validate(const protocol::Work& work) const = 0;

  // Connects this rank to the memory of another host, or to none (an empty advertisement): what
  // that host keeps then comes from elsewhere. From any thread; takes effect at the next slice.
  // InvalidArgument if it is no advertisement.
  virtual absl::Status ConnectHost(int32_t host, const std::string& advertisement) = 0;

  // What works that wait for later passes will ask the prefix cache for: it goes last. On the
  // thread of Run; no answer depends on it.
  virtual void Await(const protocol::AwaitedChanges&) {}

  // One pass. A work that fails (invalid, or logits that are not finite) fails alone. Where a
  // layer's experts cannot be had, all works of the pass fail with what was wrong with them. The
  // prefix cache changes what is computed, not an answer; it keeps nothing of a work that failed.
  virtual BatchResult Run(std::span<const protocol::Work* const> batch) = 0;
};

}  // namespace zp::engine
