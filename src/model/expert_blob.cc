#include "model/expert_blob.h"

#include "model/finite_tensor.h"

namespace zp::model {
namespace {

using checkpoint::TensorRole;
using checkpoint::TensorView;

struct FfnRoles {
  TensorRole gate, up, down;
};

absl::Status PackFfn(const checkpoint::Checkpoint& checkpoint,
                     const ops::Kernels& kernels,
                     const FfnRoles& roles,
                     int32_t layer,
                     int32_t expert,
                     std::span<std::byte> blob) {
  ZP_ASSIGN_OR_RETURN(const TensorView* gate, FiniteTensor(checkpoint, roles.gate, layer, expert));
  ZP_ASSIGN_OR_RETURN(const TensorView* up, FiniteTensor(checkpoint, roles.up, layer, expert));
  ZP_ASSIGN_OR_RETURN(const TensorView* down, FiniteTensor(checkpoint, roles.down, layer, expert));
  kernels.PackExpert(MatrixOf(*gate), MatrixOf(*up), MatrixOf(*down), blob);
  for (const TensorView* tensor : {gate, up, down}) {
    checkpoint.Release(*tensor);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PackExpertBlob(const checkpoint::Checkpoint& checkpoint,
                            const ops::Kernels& kernels,
                            int32_t layer,
                            int32_t expert,
                            std::span<std::byte> blob) {
  return PackFfn(checkpoint,
                 kernels,
                 {TensorRole::kExpertGate, TensorRole::kExpertUp, TensorRole::kExpertDown},
                 layer,
                 expert,
                 blob);
}

absl::Status PackFp8ExpertBlob(const checkpoint::Checkpoint& checkpoint,
                               const ops::Kernels& kernels,
                               int32_t layer,
                               int32_t expert,
                               std::span<std::byte> blob) {
  ZP_ASSIGN_OR_RETURN(const FiniteFp8 gate,
                      ReadFiniteFp8(checkpoint, TensorRole::kExpertGate, layer, expert));
  ZP_ASSIGN_OR_RETURN(const FiniteFp8 up,
                      ReadFiniteFp8(checkpoint, TensorRole::kExpertUp, layer, expert));
  ZP_ASSIGN_OR_RETURN(const FiniteFp8 down,
                      ReadFiniteFp8(checkpoint, TensorRole::kExpertDown, layer, expert));
  kernels.PackFp8Expert(gate.view(), up.view(), down.view(), blob);
  return absl::OkStatus();
}

absl::Status PackDenseFfnBlob(const checkpoint::Checkpoint& checkpoint,
                              const ops::Kernels& kernels,
                              int32_t layer,
                              std::span<std::byte> blob) {
  return PackFfn(checkpoint,
                 kernels,
                 {TensorRole::kDenseGate, TensorRole::kDenseUp, TensorRole::kDenseDown},
                 layer,
                 /*expert=*/-1,
                 blob);
}

}  // namespace zp::model
