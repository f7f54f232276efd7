#include "checkpoint/shard_set.h"

#include <cstdint>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "checkpoint/json_file.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

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

}  // namespace

absl::Status ShardSet::OpenAll(const std::string& directory) {
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

const TensorView* ShardSet::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second.view;
}

const Fp8Tensor* ShardSet::FindFp8(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second.fp8;
}

const std::string& ShardSet::FileOf(const std::string& name) const {
  return tensors_.at(name).shard->path();
}

std::vector<std::string> ShardSet::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) {
    names.push_back(name);
  }
  return names;
}

std::vector<std::unique_ptr<SafetensorsFile>> ShardSet::TakeShards() { return std::move(shards_); }

absl::Status ShardSet::OpenShard(std::string_view file_name) {
  ZP_ASSIGN_OR_RETURN(shards_.emplace_back(), SafetensorsFile::Open(Join(directory_, file_name)));
  const SafetensorsFile& shard = *shards_.back();
  for (const auto& [name, view] : shard.tensors()) {
    ZP_RETURN_IF_ERROR(Add(name, {.shard = &shard, .view = &view}));
  }
  for (const auto& [name, fp8] : shard.fp8_tensors()) {
    ZP_RETURN_IF_ERROR(Add(name, {.shard = &shard, .fp8 = &fp8}));
  }
  return absl::OkStatus();
}

absl::Status ShardSet::Add(const std::string& name, const Located& tensor) {
  const auto [place, is_new] = tensors_.try_emplace(name, tensor);
  if (!is_new) {
    return absl::InvalidArgumentError(fmt::format("tensor '{}' is in two files: {} and {}",
                                                  name,
                                                  place->second.shard->path(),
                                                  tensor.shard->path()));
  }
  return absl::OkStatus();
}

absl::Status ShardSet::OpenIndexed() {
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
    if (!tensors_.contains(tensor) || FileOf(tensor) != path) {
      return absl::NotFoundError(
          fmt::format("{}: has no tensor '{}', though {} says so", path, tensor, index.path()));
    }
  }
  return absl::OkStatus();
}

}  // namespace zp::checkpoint
