// A checkpoint's tensors, once their numbers are known to be finite.
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

// A matrix of 8-bit numbers, copied out of a checkpoint.
struct FiniteFp8 {
  checkpoint::Fp8Copy copy;
  int64_t rows = 0;
  int64_t cols = 0;
  spec::Fp8Blocks blocks;

  ops::Fp8Matrix view() const {
    return {copy.numbers.data(), copy.scales.data(), rows, cols, blocks};
  }
};

// The same error, if a number times its scale is not finite. REQUIRES: expert_fp8_blocks().
absl::StatusOr<FiniteFp8> ReadFiniteFp8(const checkpoint::Checkpoint& checkpoint,
                                        checkpoint::TensorRole role,
                                        int32_t layer,
                                        int32_t expert);

// A two-dimensional tensor as the kernels see it.
ops::ConstMatrix MatrixOf(const checkpoint::TensorView& tensor);

}  // namespace zp::model
