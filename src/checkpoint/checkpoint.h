// A Hugging Face model directory, as it is: config.json and (sharded) safetensors, mapped
// read-only; or a packed one, whose safetensors hold all but the experts.
//
// Weights of 8-bit numbers with scales (fp8.h) are given out widened to f32, those of experts also
// as they are.
//
// Everything the files say is checked before it is believed: see safetensors.h. Opening checks that
// each tensor that the family needs is there with the shape the config promises; the numbers
// themselves are read only when asked for.
//
// Thread safety: immutable after Open; tensors may be read from many threads.
// Ownership: views point into mappings that live as long as the Checkpoint.
// Errors: NotFound / InvalidArgument with the file, the tensor, what was expected and what was
// there; Unimplemented for an unknown architecture or option.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

struct TensorView {
  spec::DType dtype = spec::DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// What a tensor is for; each family's table maps it to a name in the files.
enum class TensorRole {
  kEmbedding,      // [vocab, h]
  kFinalNorm,      // [h]
  kOutputHead,     // [vocab, h]; with tied embeddings the embedding itself
  kAttentionNorm,  // [h], per layer from here on
  kQuery,          // [n_q * d, h]
  kKey,            // [n_kv * d, h]
  kValue,          // [n_kv * d, h]
  kQueryNorm,      // [d]
  kKeyNorm,        // [d]
  kAttentionOut,   // [h, n_q * d]
  kFfnNorm,        // [h]
  kRouter,         // [E, h]
  kExpertGate,     // [I, h], per expert
  kExpertUp,       // [I, h]
  kExpertDown,     // [h, I]
  kDenseGate,      // [F, h], layers without experts
  kDenseUp,        // [F, h]
  kDenseDown,      // [h, F]
};

// A matrix of 8-bit numbers (spec::Fp8Blocks).
struct Fp8Copy {
  std::vector<std::byte> numbers;  // row-major
  std::vector<float> scales;       // by blocks, row-major
};

class Checkpoint {
 public:
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);
  virtual ~Checkpoint() = default;

  virtual const spec::ModelSpec& spec() const = 0;
  virtual const std::string& directory() const = 0;

  // Whether the experts' weights are among the tensors. They are not where the directory is packed:
  // there they lie in files of their own (packed_experts.h).
  virtual bool has_expert_tensors() const { return true; }

  // The tensor of a role; `layer` and `expert` where the role has them. Present and of the promised
  // shape, or Open had failed. REQUIRES: has_expert_tensors() for the roles of an expert.
  virtual const TensorView& Tensor(TensorRole role,
                                   int32_t layer = -1,
                                   int32_t expert = -1) const = 0;

  // The number format of that tensor, without touching its numbers.
  virtual spec::DType DTypeOf(TensorRole role, int32_t layer = -1, int32_t expert = -1) const = 0;

  // Set if the weights of all experts are 8-bit numbers: the blocks that have a scale each.
  virtual std::optional<spec::Fp8Blocks> expert_fp8_blocks() const = 0;

  // The 8-bit numbers that Tensor() widens. REQUIRES: expert_fp8_blocks(), the role of an expert.
  virtual Fp8Copy ReadFp8(TensorRole role, int32_t layer, int32_t expert) const = 0;

  // The name of that tensor in the files, for messages.
  virtual std::string TensorName(TensorRole role,
                                 int32_t layer = -1,
                                 int32_t expert = -1) const = 0;

  // Says that a tensor's bytes will not be read again: mapped ones leave this process, widened ones
  // are freed. A later Tensor() brings the same numbers back; a view of widened ones must not be
  // read after its Release.
  virtual void Release(const TensorView& tensor) const = 0;
};

// Reads config.json alone (for counting, for synthetic checkpoints).
absl::StatusOr<spec::ModelSpec> ReadModelSpec(const std::string& config_path);

}  // namespace zp::checkpoint
