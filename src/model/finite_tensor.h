// A checkpoint's tensor, once its numbers are known to be finite.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "ops/matrix.h"

namespace zp::model {

// InvalidArgument names the tensor, the element and its value.
absl::StatusOr<const checkpoint::TensorView*> FiniteTensor(const checkpoint::Checkpoint& checkpoint,
                                                           checkpoint::TensorRole role,
                                                           int32_t layer = -1,
                                                           int32_t expert = -1);

// A two-dimensional tensor as the kernels see it.
ops::ConstMatrix MatrixOf(const checkpoint::TensorView& tensor);

}  // namespace zp::model
