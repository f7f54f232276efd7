#include "checkpoint/synthetic.h"

#include <string>
#include <utility>

#include "base/check.h"
#include "checkpoint/fp8.h"
#include "checkpoint/lazy_tensors.h"
#include "checkpoint/model_family.h"
#include "checkpoint/synthetic_tensors.h"
#include "checkpoint/tensor_table.h"
#include "memory/buffer.h"

namespace zp::checkpoint {
namespace {

class SyntheticCheckpoint final : public Checkpoint {
 public:
  SyntheticCheckpoint(const spec::ModelSpec& spec,
                      uint64_t seed,
                      std::string directory,
                      std::optional<Fp8Blocks> fp8_blocks)
      : spec_(spec),
        seed_(seed),
        directory_(std::move(directory)),
        fp8_blocks_(fp8_blocks),
        slots_(spec),
        tensors_(slots_.slot_count()) {}

  const spec::ModelSpec& spec() const override { return spec_; }
  const std::string& directory() const override { return directory_; }

  const TensorView& Tensor(TensorRole role, int32_t layer, int32_t expert) const override {
    const bool is_tied_head = role == TensorRole::kOutputHead && spec_.tied_embeddings;
    const TensorKey key = {is_tied_head ? TensorRole::kEmbedding : role, layer, expert};
    return tensors_.Get(slots_.SlotOf(key), [&] { return Generate(key); });
  }

  spec::DType DTypeOf(TensorRole role, int32_t, int32_t) const override {
    return IsFp8(role) ? spec::DType::kF32 : spec_.weight_dtype;
  }

  std::optional<Fp8Blocks> expert_fp8_blocks() const override { return fp8_blocks_; }

  Fp8Copy ReadFp8(TensorRole role, int32_t layer, int32_t expert) const override {
    ZP_CHECK(IsFp8(role)) << TensorName(role, layer, expert);
    const TensorKey key = {role, layer, expert};
    const std::vector<int64_t> shape = ShapeOf(spec_, role);
    Fp8Copy copy;
    copy.numbers.resize(shape[0] * shape[1]);
    copy.scales.resize(fp8_blocks_->ScaleCount(shape[0], shape[1]));
    SyntheticFp8Numbers(seed_, key).Fill(0, copy.numbers);
    SyntheticFp8Scales(spec_, seed_, key).Fill(0, std::as_writable_bytes(std::span(copy.scales)));
    return copy;
  }

  std::string TensorName(TensorRole role, int32_t layer, int32_t expert) const override {
    const absl::StatusOr<const ModelFamily*> family = FindFamily(spec_.family);
    const TensorKey key = {role, layer, expert};
    return family.ok() ? (*family)->tensor_name(key) : SyntheticName(key);
  }

  void Release(const TensorView& tensor) const override { tensors_.Release(tensor); }

 private:
  bool IsFp8(TensorRole role) const { return fp8_blocks_.has_value() && IsFp8Role(spec_, role); }

  MadeTensor Generate(const TensorKey& key) const {
    return IsFp8(key.role) ? GenerateWidened(key) : GenerateNumbers(key);
  }

  MadeTensor GenerateWidened(const TensorKey& key) const {
    const Fp8Copy copy = ReadFp8(key.role, key.layer, key.expert);
    const std::vector<int64_t> shape = ShapeOf(spec_, key.role);
    const TensorView scales = {spec::DType::kF32,
                               {fp8_blocks_->ScaleRows(shape[0]), fp8_blocks_->ScaleCols(shape[1])},
                               std::as_bytes(std::span(copy.scales))};
    memory::Buffer numbers(copy.numbers.size() * sizeof(float), "synthetic weights");
    Widen({copy.numbers, shape[0], shape[1], scales, *fp8_blocks_},
          {numbers.as<float>(), copy.numbers.size()});
    const TensorView view = {spec::DType::kF32, shape, numbers.bytes()};
    return {view, std::move(numbers)};
  }

  MadeTensor GenerateNumbers(const TensorKey& key) const {
    memory::Buffer numbers(TensorBytes(spec_, key.role), "synthetic weights");
    SyntheticNumbers(spec_, seed_, key).Fill(0, numbers.bytes());
    const TensorView view = {spec_.weight_dtype, ShapeOf(spec_, key.role), numbers.bytes()};
    return {view, std::move(numbers)};
  }

  const spec::ModelSpec spec_;
  const uint64_t seed_;
  const std::string directory_;
  const std::optional<Fp8Blocks> fp8_blocks_;
  const TensorSlots slots_;
  mutable LazyTensors tensors_;
};

}  // namespace

std::unique_ptr<Checkpoint> CreateSynthetic(const spec::ModelSpec& spec,
                                            uint64_t seed,
                                            std::string directory,
                                            std::optional<spec::Fp8Blocks> fp8_blocks) {
  return std::make_unique<SyntheticCheckpoint>(spec, seed, std::move(directory), fp8_blocks);
}

}  // namespace zp::checkpoint
