// The judge: every operation as plain loops in f32, as close to its formula as code can be. Slow on
// purpose.
#pragma once

#include <memory>

#include "ops/kernels.h"

namespace zp::ops::reference {

// Weights are packed as f32, row-major; activations are f32.
std::unique_ptr<Kernels> CreateKernels();

}  // namespace zp::ops::reference
