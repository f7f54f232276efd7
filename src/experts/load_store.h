// Fills the experts that a host keeps, from wherever they can be read.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "experts/expert_source.h"
#include "experts/expert_store.h"

namespace zp::experts {

// Reads every expert that the store's host keeps from `sources`, layer by layer, and holds each
// against its checksum ([layer][expert]). Errors as GatherLoop's: they name source, layer and
// expert.
absl::Status LoadStore(ExpertStore& store,
                       std::vector<ExpertSource> sources,
                       const std::vector<std::vector<uint64_t>>& checksums);

}  // namespace zp::experts
