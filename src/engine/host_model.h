// What the ranks of one process share: the dense weights, the experts that this host keeps, and the
// knowledge of where the others are.
//
// Thread safety: immutable once loaded; OpenExperts from any thread.
// Ownership: shared by the engines of the ranks.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "base/trace.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/packed_experts.h"
#include "experts/expert_gatherer.h"
#include "experts/expert_store.h"
#include "model/model_weights.h"
#include "ops/kernels.h"
#include "spec/model_spec.h"

namespace zp::engine {

enum class Backend {
  kCpu,
  kReference,  // plain loops in f32: the judge, for tests and for checking a machine
};

struct HostModelOptions {
  Backend backend = Backend::kCpu;
  spec::DType activation_dtype = spec::DType::kBf16;
  int thread_count = 0;    // that load and pack; 0 = one per core
  int32_t rank_count = 1;  // each rank has a window of its own
  // Memory for experts, windows included; hosts that share experts must set it alike. Not set: all
  // experts if the machine can spare the memory, else what it can spare.
  std::optional<int64_t> expert_memory_bytes = std::nullopt;
  int64_t reserved_bytes = 0;     // for something else: what the machine can spare is less by that
  int32_t window_slot_count = 2;  // layers in use or on their way
  // Hosts that share the experts, each with the same memory for them; this one is number `host`.
  int32_t host_count = 1;
  int32_t host = 0;
  int32_t redundancy = 0;  // copies of each expert that the hosts must hold; 0: files may do
  // fabric::MemoryServer::advertisement() of hosts that can be read while this one loads: experts
  // that they keep too come from them or from the files, whichever delivers.
  std::map<int32_t, std::string> peers = {};
  // Whether ranks read from the packed files what other hosts keep. Off in benchmarks of the links.
  bool streams_from_files = true;
  experts::GatherLoopOptions gather = {};  // how long a source may be silent
};

// What the system says it could give without swapping; 0 if it says nothing.
int64_t AvailableMemoryBytes();

// What the machine could give to experts now, if the process takes `reserved_bytes` for something
// else.
int64_t SpareMemoryBytes(int64_t reserved_bytes = 0);

// What hosts that share the experts of a model must have alike, as text: config.json, layout, every
// expert's checksum, the activations' type. (Not the other weights: of those each host has its
// own.) Errors: as Load.
absl::StatusOr<std::string> SharedFingerprint(const checkpoint::Checkpoint& checkpoint,
                                              const HostModelOptions& options);

// Whether hosts with these options can share the checkpoint's experts; reads no weights.
// Errors: as Load.
absl::Status CheckPlacement(const checkpoint::Checkpoint& checkpoint,
                            const HostModelOptions& options);

class HostModel {
 public:
  // Reads each tensor once and packs it; experts of a packed checkpoint are read as they lie, those
  // that this host keeps. ResourceExhausted if the experts do not fit and the checkpoint is not
  // packed, or if not even the windows fit; FailedPrecondition if several hosts are to share a
  // checkpoint that is not packed.
  static absl::StatusOr<std::shared_ptr<const HostModel>> Load(
      const checkpoint::Checkpoint& checkpoint, const HostModelOptions& options);

  const spec::ModelSpec& spec() const { return weights_->spec(); }
  const model::ModelWeights& weights() const { return *weights_; }
  // Of every expert, kept or gathered: in 8 bits if they are packed so.
  const ops::ExpertLayout& expert_layout() const { return expert_layout_; }
  const experts::Placement& placement() const { return store_->placement(); }
  const HostModelOptions& options() const { return options_; }
  // Fraction of the experts' bytes that this host keeps.
  double resident_fraction() const;

  // Kernels like those that packed the weights, for one rank.
  absl::StatusOr<std::unique_ptr<ops::Kernels>> CreateKernels(base::ThreadPool& pool) const;
  // A rank's window: its sources are the other hosts, in their order (none of them connected yet),
  // then the packed files if streams_from_files. `trace` may be null.
  absl::StatusOr<std::unique_ptr<experts::ExpertGatherer>> OpenExperts(int32_t rank,
                                                                       base::Trace* trace) const;
  // The source of a host's memory among those of OpenExperts. REQUIRES: not this host.
  int32_t SourceOf(int32_t host) const { return host < options_.host ? host : host - 1; }

  const experts::ExpertStore& store() const { return *store_; }
  // What this host holds out to the others, as object 0 (fabric/memory_server.h).
  std::span<const std::byte> kept_bytes() const { return store_->bytes(); }

 private:
  HostModel() = default;

  HostModelOptions options_;
  ops::ExpertLayout expert_layout_;
  std::shared_ptr<const model::ModelWeights> weights_;
  std::shared_ptr<const experts::ExpertStore> store_;
  std::optional<checkpoint::PackedExperts> packed_;  // if the checkpoint is packed
};

}  // namespace zp::engine
