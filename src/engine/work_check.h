// What the engine accepts, checked before anything is computed.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "protocol/work.h"
#include "spec/model_spec.h"

namespace zp::engine {

// InvalidArgument names the sequence, the row and the limit; see Engine::Validate.
absl::Status CheckWork(const spec::ModelSpec& spec, const protocol::Work& work);

}  // namespace zp::engine
