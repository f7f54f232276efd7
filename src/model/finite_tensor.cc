#include "model/finite_tensor.h"

#include "fmt/format.h"
#include "model/finite.h"
#include "ops/element.h"

namespace zp::model {

absl::StatusOr<const checkpoint::TensorView*> FiniteTensor(const checkpoint::Checkpoint& checkpoint,
                                                           checkpoint::TensorRole role,
                                                           int32_t layer,
                                                           int32_t expert) {
  const checkpoint::TensorView& tensor = checkpoint.Tensor(role, layer, expert);
  if (const int64_t index = FirstNonFinite(tensor.bytes, tensor.dtype); index >= 0) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} in {}: element {} is {}, not a finite number",
                    checkpoint.TensorName(role, layer, expert),
                    checkpoint.directory(),
                    index,
                    ops::LoadElement(tensor.bytes.data(), tensor.dtype, index)));
  }
  return &tensor;
}

ops::ConstMatrix MatrixOf(const checkpoint::TensorView& tensor) {
  return {tensor.bytes.data(), tensor.dtype, tensor.shape[0], tensor.shape[1], tensor.shape[1]};
}

}  // namespace zp::model
