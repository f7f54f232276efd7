#include "checkpoint/synthetic_tensors.h"

#include <cmath>
#include <vector>

#include "fmt/format.h"

namespace zp::checkpoint {

std::string SyntheticName(const TensorKey& key) {
  return fmt::format("{}/{}/{}", static_cast<int>(key.role), key.layer, key.expert);
}

RandomTensor SyntheticNumbers(const spec::ModelSpec& spec, uint64_t seed, const TensorKey& key) {
  const std::vector<int64_t> shape = ShapeOf(spec, key.role);
  const bool is_norm = shape.size() == 1;
  const bool is_embedding = key.role == TensorRole::kEmbedding && !spec.tied_embeddings;
  // Tied embeddings are the output head as well, and as such should give logits near 1.
  const float deviation = is_norm        ? 0.1f
                          : is_embedding ? 1.0f
                                         : 1.0f / std::sqrt(static_cast<float>(shape[1]));
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

}  // namespace zp::checkpoint
