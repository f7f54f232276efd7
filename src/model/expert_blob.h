// One expert of a checkpoint as the blob that the kernels read.
//
// Thread safety: may run for different experts on many threads. Errors: InvalidArgument names the
// tensor that holds a NaN or an infinity.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "ops/kernels.h"

namespace zp::model {

// Reads the three tensors of an expert once, checks that their numbers are finite, packs them into
// `blob` (kernels.expert_layout(...).bytes long) and releases them.
absl::Status PackExpertBlob(const checkpoint::Checkpoint& checkpoint,
                            const ops::Kernels& kernels,
                            int32_t layer,
                            int32_t expert,
                            std::span<std::byte> blob);

// The same in 8 bits, `blob` being kernels.expert_layout(..., checkpoint.expert_fp8_blocks()).bytes
// long. REQUIRES: checkpoint.expert_fp8_blocks().
absl::Status PackFp8ExpertBlob(const checkpoint::Checkpoint& checkpoint,
                               const ops::Kernels& kernels,
                               int32_t layer,
                               int32_t expert,
                               std::span<std::byte> blob);

// PackExpertBlob for the feed-forward block of a layer without experts.
absl::Status PackDenseFfnBlob(const checkpoint::Checkpoint& checkpoint,
                              const ops::Kernels& kernels,
                              int32_t layer,
                              std::span<std::byte> blob);

}  // namespace zp::model
