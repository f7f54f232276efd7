#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/check.h"
#include "checkpoint/json_file.h"
#include "checkpoint/model_family.h"
#include "checkpoint/packed_experts.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_table.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::checkpoint {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;
constexpr int64_t kMaxIndexBytes = int64_t{64} << 20;  // Qwen3-235B-A22B: 3 MB
constexpr const char* kSingleFileName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";

std::string Join(const std::string& directory, std::string_view name) {
  return (std::filesystem::path(directory) / name).string();
}

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
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

// Every file's tensors under one roof.
class ShardSet {
 public:
  absl::Status OpenAll(const std::string& directory) {
    directory_ = directory;
    if (Exists(Join(directory, kSingleFileName))) {
      return OpenShard(kSingleFileName);
    }
    if (!Exists(Join(directory, kIndexName))) {
      return absl::NotFoundError(
          fmt::format("{}: has neither a {} nor a {}", directory, kSingleFileName, kIndexName));
    }
    return OpenIndexed();
  }

  const TensorView* Find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : found->second.view;
  }

  const std::string& FileOf(const std::string& name) const {
    return tensors_.at(name).shard->path();
  }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) {
      names.push_back(name);
    }
    return names;
  }

  std::vector<std::unique_ptr<SafetensorsFile>> TakeShards() { return std::move(shards_); }

 private:
  struct Located {
    const TensorView* view;
    const SafetensorsFile* shard;
  };

  absl::Status OpenShard(std::string_view file_name) {
    ZP_ASSIGN_OR_RETURN(shards_.emplace_back(), SafetensorsFile::Open(Join(directory_, file_name)));
    const SafetensorsFile& shard = *shards_.back();
    for (const auto& [name, view] : shard.tensors()) {
      const auto [place, is_new] = tensors_.try_emplace(name, Located{&view, &shard});
      if (!is_new) {
        return absl::InvalidArgumentError(fmt::format("tensor '{}' is in two files: {} and {}",
                                                      name,
                                                      place->second.shard->path(),
                                                      shard.path()));
      }
    }
    return absl::OkStatus();
  }

  absl::Status OpenIndexed() {
    ZP_ASSIGN_OR_RETURN(const JsonFile index,
                        JsonFile::Load(Join(directory_, kIndexName), kMaxIndexBytes));
    ZP_ASSIGN_OR_RETURN(const JsonFile weight_map, index.Object("weight_map"));
    std::map<std::string, std::string> file_by_tensor;
    std::set<std::string> file_names;
    for (const auto& field : weight_map.object()) {
      const std::string tensor(field.key());
      ZP_ASSIGN_OR_RETURN(const std::string file_name, weight_map.FileName(tensor));
      file_by_tensor.emplace(tensor, file_name);
      file_names.insert(file_name);
    }
    if (file_names.empty()) {
      return index.Wrong("weight_map", "names no file");
    }
    for (const std::string& file_name : file_names) {
      if (!Exists(Join(directory_, file_name))) {
        return absl::NotFoundError(fmt::format("{}: is missing, though {} names it as a shard",
                                               Join(directory_, file_name),
                                               index.path()));
      }
      ZP_RETURN_IF_ERROR(OpenShard(file_name));
    }
    for (const auto& [tensor, file_name] : file_by_tensor) {
      const std::string path = Join(directory_, file_name);
      if (Find(tensor) == nullptr || FileOf(tensor) != path) {
        return absl::NotFoundError(
            fmt::format("{}: has no tensor '{}', though {} says so", path, tensor, index.path()));
      }
    }
    return absl::OkStatus();
  }

  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::map<std::string, Located> tensors_;
};

// Finds the tensors that a spec promises among those the files have.
class TensorResolver {
 public:
  TensorResolver(const ModelFamily& family,
                 const spec::ModelSpec& spec,
                 const ShardSet& shards,
                 const std::string& directory)
      : family_(family), spec_(spec), shards_(shards), directory_(directory) {}

  absl::StatusOr<std::vector<TensorView>> ResolveAll(const TensorSlots& slots, bool with_experts) {
    std::vector<TensorView> views(slots.slot_count());
    for (const TensorKey& key : TensorKeys(spec_)) {
      if (key.expert >= 0 && !with_experts) {
        continue;
      }
      ZP_ASSIGN_OR_RETURN(views[slots.SlotOf(key)], Resolve(key));
    }
    ZP_RETURN_IF_ERROR(CheckAllUsed());
    return views;
  }

 private:
  absl::StatusOr<TensorView> Resolve(const TensorKey& key) {
    const std::string name = family_.tensor_name(key);
    if (const TensorView* view = shards_.Find(name); view != nullptr) {
      ZP_RETURN_IF_ERROR(CheckShape(name, *view, ShapeOf(spec_, key.role)));
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
        CheckShape(source.name, fused, {spec_.expert_count, source.fused_rows, columns}));
    used_.insert(source.name);
    const size_t row_bytes = columns * spec::SizeOf(fused.dtype);
    const size_t first_row = key.expert * source.fused_rows + source.first_row;
    const auto bytes = fused.bytes.subspan(first_row * row_bytes, shape[0] * row_bytes);
    return TensorView{fused.dtype, std::move(shape), bytes};
  }

  absl::Status CheckShape(const std::string& name,
                          const TensorView& view,
                          const std::vector<int64_t>& expected) const {
    if (view.shape == expected) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor '{}' has shape [{}], but config.json promises [{}]",
                    shards_.FileOf(name),
                    name,
                    fmt::join(view.shape, ", "),
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
                 std::vector<TensorView> views,
                 bool has_expert_tensors)
      : family_(family),
        spec_(std::move(spec)),
        directory_(std::move(directory)),
        shards_(std::move(shards)),
        slots_(spec_),
        views_(std::move(views)),
        has_expert_tensors_(has_expert_tensors) {}

  const spec::ModelSpec& spec() const override { return spec_; }
  const std::string& directory() const override { return directory_; }
  bool has_expert_tensors() const override { return has_expert_tensors_; }

  const TensorView& Tensor(TensorRole role, int32_t layer, int32_t expert) const override {
    ZP_CHECK(has_expert_tensors_ || expert < 0)
        << directory_ << " is packed: expert " << expert << " of layer " << layer;
    const TensorView& view = views_[slots_.SlotOf({role, layer, expert})];
    for (const auto& shard : shards_) {
      if (shard->Holds(view.bytes)) {
        shard->ReadAhead(view.bytes);
        break;
      }
    }
    return view;
  }

  std::string TensorName(TensorRole role, int32_t layer, int32_t expert) const override {
    return family_.tensor_name({role, layer, expert});
  }

  void Release(const TensorView& tensor) const override { ReleasePages(tensor.bytes); }

 private:
  const ModelFamily& family_;
  const spec::ModelSpec spec_;
  const std::string directory_;
  const std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  const TensorSlots slots_;
  const std::vector<TensorView> views_;
  const bool has_expert_tensors_;
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
  TensorResolver resolver(*family, spec, shards, directory);
  const TensorSlots slots(spec);
  ZP_ASSIGN_OR_RETURN(std::vector<TensorView> views,
                      resolver.ResolveAll(slots, has_expert_tensors));
  // The files know better than config.json.
  spec.weight_dtype = views[slots.SlotOf({TensorRole::kEmbedding})].dtype;
  return std::make_unique<FileCheckpoint>(*family,
                                          std::move(spec),
                                          directory,
                                          shards.TakeShards(),
                                          std::move(views),
                                          has_expert_tensors);
}

absl::StatusOr<spec::ModelSpec> ReadModelSpec(const std::string& config_path) {
  ZP_ASSIGN_OR_RETURN(const JsonFile config, JsonFile::Load(config_path, kMaxConfigBytes));
  ZP_ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(config));
  return family->read_spec(config);
}

}  // namespace zp::checkpoint
