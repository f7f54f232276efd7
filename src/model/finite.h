// Finds numbers that are not numbers, before they spread through a model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "spec/dtype.h"

namespace zp::model {

// Index of the first NaN or infinity among the numbers in `bytes`, or -1. Runs at memory speed.
int64_t FirstNonFinite(std::span<const std::byte> bytes, spec::DType dtype);

}  // namespace zp::model
