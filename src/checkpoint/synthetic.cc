#include "checkpoint/synthetic.h"

#include <string>
#include <utility>

#include "checkpoint/lazy_tensors.h"
#include "checkpoint/model_family.h"
#include "checkpoint/synthetic_tensors.h"
#include "checkpoint/tensor_table.h"
#include "memory/buffer.h"

namespace zp::checkpoint {
namespace {

class SyntheticCheckpoint final : public Checkpoint {
 public:
  SyntheticCheckpoint(const spec::ModelSpec& spec, uint64_t seed, std::string directory)
      : spec_(spec),
        seed_(seed),
        directory_(std::move(directory)),
        slots_(spec),
        tensors_(slots_.slot_count()) {}

  const spec::ModelSpec& spec() const override { return spec_; }
  const std::string& directory() const override { return directory_; }

  const TensorView& Tensor(TensorRole role, int32_t layer, int32_t expert) const override {
    const bool is_tied_head = role == TensorRole::kOutputHead && spec_.tied_embeddings;
    const TensorKey key = {is_tied_head ? TensorRole::kEmbedding : role, layer, expert};
    return tensors_.Get(slots_.SlotOf(key), [&] { return Generate(key); });
  }

  spec::DType DTypeOf(TensorRole, int32_t, int32_t) const override { return spec_.weight_dtype; }

  std::string TensorName(TensorRole role, int32_t layer, int32_t expert) const override {
    const absl::StatusOr<const ModelFamily*> family = FindFamily(spec_.family);
    const TensorKey key = {role, layer, expert};
    return family.ok() ? (*family)->tensor_name(key) : SyntheticName(key);
  }

  void Release(const TensorView& tensor) const override { tensors_.Release(tensor); }

 private:
  MadeTensor Generate(const TensorKey& key) const {
    memory::Buffer numbers(TensorBytes(spec_, key.role), "synthetic weights");
    SyntheticNumbers(spec_, seed_, key).Fill(0, numbers.bytes());
    const TensorView view = {spec_.weight_dtype, ShapeOf(spec_, key.role), numbers.bytes()};
    return {view, std::move(numbers)};
  }

  const spec::ModelSpec spec_;
  const uint64_t seed_;
  const std::string directory_;
  const TensorSlots slots_;
  mutable LazyTensors tensors_;
};

}  // namespace

std::unique_ptr<Checkpoint> CreateSynthetic(const spec::ModelSpec& spec,
                                            uint64_t seed,
                                            std::string directory) {
  return std::make_unique<SyntheticCheckpoint>(spec, seed, std::move(directory));
}

}  // namespace zp::checkpoint
