#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "checkpoint/fp8.h"
#include "checkpoint/json_file.h"
#include "checkpoint/lazy_tensors.h"
#include "checkpoint/model_family.h"
#include "checkpoint/packed_experts.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard_set.h"
#include "checkpoint/tensor_table.h"
#include "fmt/format.h"
#include "fmt/ranges.h"
#include "memory/buffer.h"

namespace zp::checkpoint {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;

std::string Join(const std::string& directory, std::string_view name) {
  return (std::filesystem::path(directory) / name).string();
}

absl::StatusOr<const ModelFamily*> FamilyOf(const JsonFile& config) {
  ZP_ASSIGN_OR_RETURN(const std::string model_type, config.String("model_type"));
  absl::StatusOr<const ModelFamily*> family = FindFamily(model_type);
  if (!family.ok()) {
    return absl::UnimplementedError(
        fmt::format("{}: {}", config.path(), base::MessageOf(family.status())));
  }
  ZP_ASSIGN_OR_RETURN(const std::vector<std::string> names, config.Strings("architectures"));
  if (!names.empty() &&
      std::find(names.begin(), names.end(), (*family)->architecture) == names.end()) {
    return config.Unsupported("architectures",
                              fmt::format("is [{}], but only {} is supported for model type '{}'",
                                          fmt::join(names, ", "),
                                          (*family)->architecture,
                                          model_type));
  }
  return *family;
}

// Where the tensors of a model are.
struct ResolvedTensors {
  std::vector<TensorView> views;  // by slot (TensorSlots); without bytes for 8-bit weights
  std::map<size_t, Fp8Weight> fp8_by_slot;
};

// Finds the tensors that a spec promises among those the files have.
class TensorResolver {
 public:
  TensorResolver(const ModelFamily& family,
                 const spec::ModelSpec& spec,
                 std::optional<Fp8Blocks> fp8_blocks,
                 const ShardSet& shards,
                 const std::string& directory)
      : family_(family),
        spec_(spec),
        fp8_blocks_(fp8_blocks),
        shards_(shards),
        directory_(directory) {}

  absl::StatusOr<ResolvedTensors> ResolveAll(const TensorSlots& slots, bool with_experts) {
    ResolvedTensors tensors;
    tensors.views.resize(slots.slot_count());
    for (const TensorKey& key : TensorKeys(spec_)) {
      if (key.expert >= 0 && !with_experts) {
        continue;
      }
      const size_t slot = slots.SlotOf(key);
      if (const Fp8Tensor* fp8 = shards_.FindFp8(family_.tensor_name(key)); fp8 != nullptr) {
        ZP_ASSIGN_OR_RETURN(tensors.fp8_by_slot[slot], ResolveFp8(key, *fp8));
        tensors.views[slot] = {spec::DType::kF32, fp8->shape, {}};
        continue;
      }
      ZP_ASSIGN_OR_RETURN(tensors.views[slot], Resolve(key));
    }
    ZP_RETURN_IF_ERROR(CheckAllUsed());
    return tensors;
  }

 private:
  absl::StatusOr<TensorView> Resolve(const TensorKey& key) {
    const std::string name = family_.tensor_name(key);
    if (const TensorView* view = shards_.Find(name); view != nullptr) {
      ZP_RETURN_IF_ERROR(CheckShape(name, view->shape, ShapeOf(spec_, key.role)));
      used_.insert(name);
      return *view;
    }
    if (key.expert >= 0) {
      const TensorSource source = family_.fused_source(spec_, key);
      if (const TensorView* fused = shards_.Find(source.name); fused != nullptr) {
        return ResolveFused(key, source, *fused);
      }
    }
    return absl::NotFoundError(fmt::format(
        "{}: tensor '{}' of shape [{}], which the model of its config.json needs, is in no file",
        directory_,
        name,
        fmt::join(ShapeOf(spec_, key.role), ", ")));
  }

  absl::StatusOr<TensorView> ResolveFused(const TensorKey& key,
                                          const TensorSource& source,
                                          const TensorView& fused) {
    std::vector<int64_t> shape = ShapeOf(spec_, key.role);
    const int64_t columns = shape[1];
    ZP_RETURN_IF_ERROR(
        CheckShape(source.name, fused.shape, {spec_.expert_count, source.fused_rows, columns}));
    used_.insert(source.name);
    const size_t row_bytes = columns * spec::SizeOf(fused.dtype);
    const size_t first_row = key.expert * source.fused_rows + source.first_row;
    const auto bytes = fused.bytes.subspan(first_row * row_bytes, shape[0] * row_bytes);
    return TensorView{fused.dtype, std::move(shape), bytes};
  }

  // A weight of 8-bit numbers and the tensor of its scales.
  absl::StatusOr<Fp8Weight> ResolveFp8(const TensorKey& key, const Fp8Tensor& fp8) {
    const std::string name = family_.tensor_name(key);
    const std::string scale_name = name + "_scale_inv";
    ZP_RETURN_IF_ERROR(CheckShape(name, fp8.shape, ShapeOf(spec_, key.role)));
    if (!fp8_blocks_.has_value() || fp8.shape.size() != 2) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor '{}' has 8-bit numbers, but {}",
                      shards_.FileOf(name),
                      name,
                      fp8_blocks_.has_value() ? "it is no matrix, only matrices have scales"
                                              : "config.json has no quantization_config"));
    }
    const TensorView* scales = shards_.Find(scale_name);
    if (scales == nullptr) {
      return absl::NotFoundError(
          fmt::format("{}: tensor '{}', the scales of the 8-bit numbers of '{}', is in no file",
                      directory_,
                      scale_name,
                      name));
    }
    if (scales->dtype == spec::DType::kF16) {
      return absl::UnimplementedError(
          fmt::format("{}: tensor '{}' is f16, but only bf16 and f32 scales are read",
                      shards_.FileOf(scale_name),
                      scale_name));
    }
    const int64_t rows = fp8.shape[0];
    const int64_t cols = fp8.shape[1];
    ZP_RETURN_IF_ERROR(CheckShape(
        scale_name, scales->shape, {fp8_blocks_->ScaleRows(rows), fp8_blocks_->ScaleCols(cols)}));
    used_.insert(name);
    used_.insert(scale_name);
    return Fp8Weight{fp8.bytes, rows, cols, *scales, *fp8_blocks_};
  }

  absl::Status CheckShape(const std::string& name,
                          const std::vector<int64_t>& shape,
                          const std::vector<int64_t>& expected) const {
    if (shape == expected) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor '{}' has shape [{}], but config.json promises [{}]",
                    shards_.FileOf(name),
                    name,
                    fmt::join(shape, ", "),
                    fmt::join(expected, ", ")));
  }

  // A tensor that nothing reads (a bias, a shared expert, one more layer) means that config.json
  // describes another model: its answers would be wrong in silence.
  absl::Status CheckAllUsed() const {
    const std::string head = family_.tensor_name({TensorRole::kOutputHead});
    for (const std::string& name : shards_.Names()) {
      const bool is_tied_head = spec_.tied_embeddings && name == head;
      if (!used_.contains(name) && !is_tied_head && !family_.is_redundant(name)) {
        return absl::InvalidArgumentError(
            fmt::format("{}: tensor '{}' has no place in the {} model that config.json describes",
                        shards_.FileOf(name),
                        name,
                        spec_.family));
      }
    }
    return absl::OkStatus();
  }

  const ModelFamily& family_;
  const spec::ModelSpec& spec_;
  const std::optional<Fp8Blocks> fp8_blocks_;
  const ShardSet& shards_;
  const std::string& directory_;
  std::set<std::string> used_;
};

class FileCheckpoint final : public Checkpoint {
 public:
  FileCheckpoint(const ModelFamily& family,
                 spec::ModelSpec spec,
                 std::string directory,
                 std::vector<std::unique_ptr<SafetensorsFile>> shards,
                 ResolvedTensors tensors,
                 bool has_expert_tensors)
      : family_(family),
        spec_(std::move(spec)),
        directory_(std::move(directory)),
        shards_(std::move(shards)),
        slots_(spec_),
        tensors_(std::move(tensors)),
        widened_(tensors_.fp8_by_slot.empty() ? 0 : slots_.slot_count()),
        has_expert_tensors_(has_expert_tensors),
        expert_fp8_blocks_(FindExpertFp8Blocks()) {}

  const spec::ModelSpec& spec() const override { return spec_; }
  const std::string& directory() const override { return directory_; }
  bool has_expert_tensors() const override { return has_expert_tensors_; }

  const TensorView& Tensor(TensorRole role, int32_t layer, int32_t expert) const override {
    ZP_CHECK(has_expert_tensors_ || expert < 0)
        << directory_ << " is packed: expert " << expert << " of layer " << layer;
    const size_t slot = slots_.SlotOf({role, layer, expert});
    if (const auto fp8 = tensors_.fp8_by_slot.find(slot); fp8 != tensors_.fp8_by_slot.end()) {
      return widened_.Get(slot, [&] { return MakeWidened(tensors_.views[slot], fp8->second); });
    }
    ReadAhead(tensors_.views[slot].bytes);
    return tensors_.views[slot];
  }

  spec::DType DTypeOf(TensorRole role, int32_t layer, int32_t expert) const override {
    return tensors_.views[slots_.SlotOf({role, layer, expert})].dtype;
  }

  std::optional<Fp8Blocks> expert_fp8_blocks() const override { return expert_fp8_blocks_; }

  Fp8Copy ReadFp8(TensorRole role, int32_t layer, int32_t expert) const override {
    ZP_CHECK(expert_fp8_blocks_.has_value() && expert >= 0) << TensorName(role, layer, expert);
    const Fp8Weight& weight = tensors_.fp8_by_slot.at(slots_.SlotOf({role, layer, expert}));
    ReadAhead(weight.numbers);
    Fp8Copy copy = CopyOf(weight);
    ReleasePages(weight.numbers);
    return copy;
  }

  std::string TensorName(TensorRole role, int32_t layer, int32_t expert) const override {
    return family_.tensor_name({role, layer, expert});
  }

  void Release(const TensorView& tensor) const override {
    if (!widened_.Release(tensor)) {
      ReleasePages(tensor.bytes);
    }
  }

 private:
  std::optional<Fp8Blocks> FindExpertFp8Blocks() const {
    std::optional<Fp8Blocks> blocks;
    for (const TensorKey& key : TensorKeys(spec_)) {
      if (key.expert < 0) {
        continue;
      }
      const auto fp8 = tensors_.fp8_by_slot.find(slots_.SlotOf(key));
      if (fp8 == tensors_.fp8_by_slot.end()) {
        return std::nullopt;
      }
      blocks = fp8->second.blocks;
    }
    return blocks;
  }

  MadeTensor MakeWidened(TensorView view, const Fp8Weight& weight) const {
    const int64_t count = weight.rows * weight.cols;
    memory::Buffer numbers(count * sizeof(float), "widened weights");
    ReadAhead(weight.numbers);
    Widen(weight, {numbers.as<float>(), static_cast<size_t>(count)});
    ReleasePages(weight.numbers);
    view.bytes = numbers.bytes();
    return {std::move(view), std::move(numbers)};
  }

  void ReadAhead(std::span<const std::byte> bytes) const {
    for (const auto& shard : shards_) {
      if (shard->Holds(bytes)) {
        shard->ReadAhead(bytes);
        return;
      }
    }
  }

  const ModelFamily& family_;
  const spec::ModelSpec spec_;
  const std::string directory_;
  const std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  const TensorSlots slots_;
  const ResolvedTensors tensors_;
  mutable LazyTensors widened_;
  const bool has_expert_tensors_;
  const std::optional<Fp8Blocks> expert_fp8_blocks_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  ZP_ASSIGN_OR_RETURN(const JsonFile config,
                      JsonFile::Load(Join(directory, "config.json"), kMaxConfigBytes));
  ZP_ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(config));
  ZP_ASSIGN_OR_RETURN(spec::ModelSpec spec, family->read_spec(config));
  if (IsPackingUnfinished(directory)) {
    return absl::FailedPreconditionError(
        fmt::format("{}: its packing has not ended; run it again to finish it", directory));
  }
  const bool has_expert_tensors = !IsPacked(directory);
  ShardSet shards;
  ZP_RETURN_IF_ERROR(shards.OpenAll(directory));
  ZP_ASSIGN_OR_RETURN(const std::optional<Fp8Blocks> fp8_blocks, ReadFp8Blocks(config));
  TensorResolver resolver(*family, spec, fp8_blocks, shards, directory);
  const TensorSlots slots(spec);
  ZP_ASSIGN_OR_RETURN(ResolvedTensors tensors, resolver.ResolveAll(slots, has_expert_tensors));
  // The files know better than config.json.
  spec.weight_dtype = tensors.views[slots.SlotOf({TensorRole::kEmbedding})].dtype;
  return std::make_unique<FileCheckpoint>(*family,
                                          std::move(spec),
                                          directory,
                                          shards.TakeShards(),
                                          std::move(tensors),
                                          has_expert_tensors);
}

absl::StatusOr<spec::ModelSpec> ReadModelSpec(const std::string& config_path) {
  ZP_ASSIGN_OR_RETURN(const JsonFile config, JsonFile::Load(config_path, kMaxConfigBytes));
  ZP_ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(config));
  return family->read_spec(config);
}

}  // namespace zp::checkpoint
