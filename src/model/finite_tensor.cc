#include "model/finite_tensor.h"

#include <vector>

#include "checkpoint/tensor_table.h"
#include "fmt/format.h"
#include "model/finite.h"
#include "ops/element.h"

namespace zp::model {

namespace {

absl::Status NotFinite(const checkpoint::Checkpoint& checkpoint,
                       checkpoint::TensorRole role,
                       int32_t layer,
                       int32_t expert,
                       int64_t index,
                       float value) {
  return absl::InvalidArgumentError(
      fmt::format("tensor {} in {}: element {} is {}, not a finite number",
                  checkpoint.TensorName(role, layer, expert),
                  checkpoint.directory(),
                  index,
                  value));
}

}  // namespace

absl::StatusOr<const checkpoint::TensorView*> FiniteTensor(const checkpoint::Checkpoint& checkpoint,
                                                           checkpoint::TensorRole role,
                                                           int32_t layer,
                                                           int32_t expert) {
  const checkpoint::TensorView& tensor = checkpoint.Tensor(role, layer, expert);
  if (const int64_t index = FirstNonFinite(tensor.bytes, tensor.dtype); index >= 0) {
    const float value = ops::LoadElement(tensor.bytes.data(), tensor.dtype, index);
    return NotFinite(checkpoint, role, layer, expert, index, value);
  }
  return &tensor;
}

absl::StatusOr<FiniteFp8> ReadFiniteFp8(const checkpoint::Checkpoint& checkpoint,
                                        checkpoint::TensorRole role,
                                        int32_t layer,
                                        int32_t expert) {
  const std::vector<int64_t> shape = checkpoint::ShapeOf(checkpoint.spec(), role);
  FiniteFp8 matrix = {
      checkpoint.ReadFp8(role, layer, expert), shape[0], shape[1], *checkpoint.expert_fp8_blocks()};
  if (const int64_t index = FirstNonFinite(matrix.view()); index >= 0) {
    const float value = ops::LoadElement(matrix.view(), index / matrix.cols, index % matrix.cols);
    return NotFinite(checkpoint, role, layer, expert, index, value);
  }
  return matrix;
}

ops::ConstMatrix MatrixOf(const checkpoint::TensorView& tensor) {
  return {tensor.bytes.data(), tensor.dtype, tensor.shape[0], tensor.shape[1], tensor.shape[1]};
}

}  // namespace zp::model
