#include <cmath>

#include "scoring/scoring.h"

namespace zp::scoring {
namespace {

// A vector of zeros has no direction and stays as it is.
void ScaleToLengthOne(std::vector<float>& embedding, double square_sum) {
  if (square_sum == 0) {
    return;
  }
  const double scale = 1.0 / std::sqrt(square_sum);
  for (float& value : embedding) {
    value = static_cast<float>(value * scale);
  }
}

}  // namespace

absl::Status PlanEmbedding(const EmbeddingQuestion& question, protocol::Work& work) {
  if (question.tokens.empty()) {
    return absl::InvalidArgumentError("tokens is empty");
  }
  if (question.pooling == protocol::Pooling::kNone) {
    return absl::InvalidArgumentError("pooling is none: an embedding needs last token or mean");
  }
  work.sequences.push_back({.tokens = question.tokens, .pooling = question.pooling});
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> ReadEmbedding(const EmbeddingQuestion& question,
                                                 const protocol::SequenceResult& result) {
  if (result.pooled.empty()) {
    return absl::InternalError("the worker answered no pooled hidden state");
  }
  double square_sum = 0;
  for (const float value : result.pooled) {
    square_sum += static_cast<double>(value) * value;
  }
  if (!std::isfinite(square_sum)) {
    return absl::InternalError("the model gave a hidden state that is not finite");
  }
  std::vector<float> embedding = result.pooled;
  if (question.normalize) {
    ScaleToLengthOne(embedding, square_sum);
  }
  return embedding;
}

}  // namespace zp::scoring
