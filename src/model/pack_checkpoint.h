// Writes a checkpoint as a packed directory (docs/packed_format.md): its experts as the blobs that
// `kernels` read, one file per layer, everything else as it was. Experts of 8-bit numbers stay so.
//
// A run that was killed is gone on with: layers that were finished stay. Memory: one blob per
// thread; the page cache holds two more per thread of what was written, and what a layer has read.
// Thread safety: one call for one directory at a time, which a lock on the directory ensures also
// between processes. Errors name the directory, the file or the tensor: AlreadyExists if
// `directory` holds something else, FailedPrecondition if it holds an unfinished packing of another
// checkpoint or layout, ResourceExhausted if the disk is too small, Unavailable if another run
// writes it, InvalidArgument for a checkpoint that is packed already or has numbers that are not
// finite.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/packed_experts.h"
#include "ops/kernels.h"

namespace zp::model {

struct PackProgress {
  int64_t written_bytes = 0;  // by this run
  int64_t total_bytes = 0;    // that this run writes
};

// Called from the calling thread, after a tensor or an expert.
using ReportPackProgress = std::function<void(const PackProgress&)>;

absl::StatusOr<PackProgress> PackCheckpoint(const checkpoint::Checkpoint& checkpoint,
                                            const ops::Kernels& kernels,
                                            base::ThreadPool& pool,
                                            const std::string& directory,
                                            const ReportPackProgress& report);

// Whether `kernels` can read `experts` of a model of this spec: the same layout under the same
// name. FailedPrecondition names the directory, the field and both values.
absl::Status CheckPackedLayout(const checkpoint::PackedExperts& experts,
                               const spec::ModelSpec& spec,
                               const ops::Kernels& kernels);

}  // namespace zp::model
