// Finds numbers that are not numbers, before they spread through a model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/matrix.h"
#include "spec/dtype.h"

namespace zp::model {

// Index of the first NaN or infinity among the numbers in `bytes`, or -1. Runs at memory speed.
int64_t FirstNonFinite(std::span<const std::byte> bytes, spec::DType dtype);

// Index of the first number of a matrix of 8-bit numbers that is none once it is scaled, or -1.
int64_t FirstNonFinite(const ops::Fp8Matrix& matrix);

}  // namespace zp::model
