#include "checkpoint/synthetic_tensors.h"

#include <cmath>
#include <vector>

#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

// Of 8-bit numbers: the largest are at 3.5 deviations, half of 448.
constexpr float kFp8Deviation = 64;
// Of scales, as a part of their mean: so that no block has its neighbour's.
constexpr float kScaleSpread = 0.1f;

float WeightDeviation(const std::vector<int64_t>& shape) {
  return 1.0f / std::sqrt(static_cast<float>(shape[1]));
}

}  // namespace

std::string SyntheticName(const TensorKey& key) {
  return fmt::format("{}/{}/{}", static_cast<int>(key.role), key.layer, key.expert);
}

RandomTensor SyntheticNumbers(const spec::ModelSpec& spec, uint64_t seed, const TensorKey& key) {
  const std::vector<int64_t> shape = ShapeOf(spec, key.role);
  const bool is_norm = shape.size() == 1;
  const bool is_embedding = key.role == TensorRole::kEmbedding && !spec.tied_embeddings;
  // Tied embeddings are the output head as well, and as such should give logits near 1.
  const float deviation = is_norm ? 0.1f : is_embedding ? 1.0f : WeightDeviation(shape);
  return RandomTensor(
      seed, SyntheticName(key), spec.weight_dtype, is_norm ? 1.0f : 0.0f, deviation);
}

size_t TensorBytes(const spec::ModelSpec& spec, TensorRole role) {
  size_t size_bytes = spec::SizeOf(spec.weight_dtype);
  for (const int64_t extent : ShapeOf(spec, role)) {
    size_bytes *= extent;
  }
  return size_bytes;
}

bool IsFp8Role(const spec::ModelSpec& spec, TensorRole role) {
  return role != TensorRole::kEmbedding && role != TensorRole::kOutputHead &&
         role != TensorRole::kRouter && ShapeOf(spec, role).size() == 2;
}

RandomTensor SyntheticFp8Numbers(uint64_t seed, const TensorKey& key) {
  return RandomTensor::OfFp8(seed, SyntheticName(key) + "/fp8", kFp8Deviation);
}

RandomTensor SyntheticFp8Scales(const spec::ModelSpec& spec, uint64_t seed, const TensorKey& key) {
  const float mean = WeightDeviation(ShapeOf(spec, key.role)) / kFp8Deviation;
  return RandomTensor(
      seed, SyntheticName(key) + "/scales", spec::DType::kF32, mean, kScaleSpread * mean);
}

}  // namespace zp::checkpoint
