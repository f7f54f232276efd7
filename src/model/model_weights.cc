#include "model/model_weights.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "model/expert_blob.h"
#include "model/finite_tensor.h"
#include "ops/element.h"

namespace zp::model {

using checkpoint::TensorRole;
using checkpoint::TensorView;

// Fills a ModelWeights, one tensor after the other.
class WeightLoader {
 public:
  WeightLoader(const checkpoint::Checkpoint& checkpoint,
               const ops::Kernels& kernels,
               ModelWeights& weights)
      : checkpoint_(checkpoint), kernels_(kernels), spec_(checkpoint.spec()), weights_(weights) {}

  absl::Status Load() {
    weights_.spec_ = spec_;
    weights_.dense_layout_ = kernels_.expert_layout(spec_.model_dim, spec_.dense_ffn_dim);
    ZP_RETURN_IF_ERROR(LoadEnds());
    weights_.layers_.resize(spec_.layer_count);
    for (int32_t layer = 0; layer < spec_.layer_count; ++layer) {
      ZP_RETURN_IF_ERROR(LoadDenseLayer(layer, weights_.layers_[layer]));
    }
    return absl::OkStatus();
  }

 private:
  // Embedding, output head and the last norm.
  absl::Status LoadEnds() {
    ZP_ASSIGN_OR_RETURN(weights_.embedding_, CopyMatrix(TensorRole::kEmbedding));
    weights_.output_head_ = weights_.embedding_;
    if (!spec_.tied_embeddings) {
      ZP_ASSIGN_OR_RETURN(weights_.output_head_, CopyMatrix(TensorRole::kOutputHead));
    }
    weights_.packed_output_head_ = PackMatrix(weights_.output_head_);
    ZP_ASSIGN_OR_RETURN(weights_.final_norm_, LoadVector(TensorRole::kFinalNorm));
    return absl::OkStatus();
  }

  absl::Status LoadDenseLayer(int32_t layer, LayerWeights& out) {
    ZP_ASSIGN_OR_RETURN(out.attention_norm, LoadVector(TensorRole::kAttentionNorm, layer));
    ZP_ASSIGN_OR_RETURN(out.ffn_norm, LoadVector(TensorRole::kFfnNorm, layer));
    if (spec_.has_qk_norm) {
      ZP_ASSIGN_OR_RETURN(out.query_norm, LoadVector(TensorRole::kQueryNorm, layer));
      ZP_ASSIGN_OR_RETURN(out.key_norm, LoadVector(TensorRole::kKeyNorm, layer));
    }
    ZP_ASSIGN_OR_RETURN(out.query, LoadMatrix(TensorRole::kQuery, layer));
    ZP_ASSIGN_OR_RETURN(out.key_value, LoadKeyValue(layer));
    ZP_ASSIGN_OR_RETURN(out.attention_out, LoadMatrix(TensorRole::kAttentionOut, layer));
    if (spec_.layer_is_moe[layer]) {
      ZP_ASSIGN_OR_RETURN(out.router, LoadMatrix(TensorRole::kRouter, layer));
      return absl::OkStatus();
    }
    const std::span<std::byte> blob = NewBuffer(weights_.dense_layout_.bytes);
    out.dense_ffn = blob.data();
    return PackDenseFfnBlob(checkpoint_, kernels_, layer, blob);
  }

  absl::StatusOr<ops::PackedWeight> LoadMatrix(TensorRole role, int32_t layer) {
    ZP_ASSIGN_OR_RETURN(const TensorView* tensor, FiniteTensor(checkpoint_, role, layer));
    const ops::PackedWeight packed = PackMatrix(MatrixOf(*tensor));
    checkpoint_.Release(*tensor);
    return packed;
  }

  // Keys and values come from one product: their rows are stacked.
  absl::StatusOr<ops::PackedWeight> LoadKeyValue(int32_t layer) {
    ZP_ASSIGN_OR_RETURN(const TensorView* key, FiniteTensor(checkpoint_, TensorRole::kKey, layer));
    ZP_ASSIGN_OR_RETURN(const TensorView* value,
                        FiniteTensor(checkpoint_, TensorRole::kValue, layer));
    if (key->dtype != value->dtype) {
      return absl::UnimplementedError(fmt::format(
          "{} is {} but {} is {}: keys and values of one layer must have one number format",
          checkpoint_.TensorName(TensorRole::kKey, layer),
          spec::NameOf(key->dtype),
          checkpoint_.TensorName(TensorRole::kValue, layer),
          spec::NameOf(value->dtype)));
    }
    std::vector<std::byte> stacked(key->bytes.size() + value->bytes.size());
    std::ranges::copy(key->bytes, stacked.begin());
    std::ranges::copy(value->bytes, stacked.begin() + static_cast<int64_t>(key->bytes.size()));
    const int64_t in_dim = key->shape[1];
    const ops::PackedWeight packed =
        PackMatrix({stacked.data(), key->dtype, key->shape[0] + value->shape[0], in_dim, in_dim});
    checkpoint_.Release(*key);
    checkpoint_.Release(*value);
    return packed;
  }

  ops::PackedWeight PackMatrix(const ops::ConstMatrix& weight) {
    const std::span<std::byte> packed = NewBuffer(kernels_.packed_bytes(weight.rows, weight.cols));
    kernels_.Pack(weight, packed);
    return {packed.data(), weight.rows, weight.cols};
  }

  absl::StatusOr<ops::ConstMatrix> CopyMatrix(TensorRole role) {
    ZP_ASSIGN_OR_RETURN(const TensorView* tensor, FiniteTensor(checkpoint_, role, -1));
    const std::span<std::byte> bytes = NewBuffer(tensor->bytes.size());
    std::ranges::copy(tensor->bytes, bytes.begin());
    checkpoint_.Release(*tensor);
    return ops::ConstMatrix{
        bytes.data(), tensor->dtype, tensor->shape[0], tensor->shape[1], tensor->shape[1]};
  }

  absl::StatusOr<std::span<const float>> LoadVector(TensorRole role, int32_t layer = -1) {
    ZP_ASSIGN_OR_RETURN(const TensorView* tensor, FiniteTensor(checkpoint_, role, layer));
    const int64_t count = tensor->shape[0];
    auto* values = reinterpret_cast<float*>(NewBuffer(count * sizeof(float)).data());
    for (int64_t index = 0; index < count; ++index) {
      values[index] = ops::LoadElement(tensor->bytes.data(), tensor->dtype, index);
    }
    return std::span<const float>(values, count);
  }

  std::span<std::byte> NewBuffer(size_t size_bytes) {
    weights_.buffers_.emplace_back(size_bytes, "dense weights");
    return weights_.buffers_.back().bytes();
  }

  const checkpoint::Checkpoint& checkpoint_;
  const ops::Kernels& kernels_;
  const spec::ModelSpec& spec_;
  ModelWeights& weights_;
};

absl::StatusOr<std::shared_ptr<const ModelWeights>> ModelWeights::Load(
    const checkpoint::Checkpoint& checkpoint, const ops::Kernels& kernels) {
  const std::shared_ptr<ModelWeights> weights(new ModelWeights);
  ZP_RETURN_IF_ERROR(WeightLoader(checkpoint, kernels, *weights).Load());
  return weights;
}

}  // namespace zp::model
