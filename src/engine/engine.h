// Run(batch): units of tokenized work in, the rows they asked for out. One forward pass over the
// trie of all their tokens.
//
// Thread safety: Run from one thread (the rank's engine thread). Validate and spec from any thread.
// Ownership: the engine owns the weights, the kernels and its compute threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "protocol/work.h"
#include "spec/model_spec.h"

namespace zp::engine {

enum class Backend {
  kCpu,
  kReference,  // plain loops in f32: the judge, for tests and for checking a machine
};

struct EngineOptions {
  Backend backend = Backend::kCpu;
  int thread_count = 0;  // compute threads; 0 = one per core
  spec::DType activation_dtype = spec::DType::kBf16;
  int64_t chunk_tokens =
      8192;  // rows that go through a layer's step at once: bounds activation memory
};

// What one pass did and what it cost.
struct PassReport {
  int64_t asked_tokens = 0;     // over all sequences of all work
  int64_t computed_tokens = 0;  // after sharing prefixes; asked / computed is the sharing factor
  double flops = 0;             // true FLOPs of the pass (spec/flops.h)
  double seconds = 0;
  double exposed_wait_seconds = 0;              // compute stood still for weights
  std::map<std::string, double> seconds_by_op;  // wall time
};

struct BatchResult {
  std::vector<absl::StatusOr<protocol::WorkResult>> works;  // in the batch's order
  PassReport report;
};

class Engine {
 public:
  // Loads the weights of `checkpoint` (each byte is read once) and packs them.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const checkpoint::Checkpoint& checkpoint,
                                                        const EngineOptions& options);
  virtual ~Engine() = default;

  virtual const spec::ModelSpec& spec() const = 0;
  virtual std::string kernels_name() const = 0;

  // Whether Run will accept this work: token ids within the vocabulary, lengths within
  // max_position_count, row positions inside their sequence and rising. InvalidArgument names the
  // sequence and the limit.
  virtual absl::Status Validate(const protocol::Work& work) const = 0;

  // One pass. A work that fails (invalid, or logits that are not finite) fails alone.
  virtual BatchResult Run(std::span<const protocol::Work* const> batch) = 0;
};

}  // namespace zp::engine
