#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"
#include "checkpoint/byte_tokenizer.h"
#include "checkpoint/model_family.h"
#include "checkpoint/output_file.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/synthetic.h"
#include "checkpoint/synthetic_tensors.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr size_t kChunkBytes = size_t{1} << 20;  // generated and written at once: stays in L2

// The model's tensors, in order, cut into files of at most `max_bytes` (or of one tensor).
std::vector<std::vector<TensorKey>> PlanShards(const spec::ModelSpec& spec, size_t max_bytes) {
  std::vector<std::vector<TensorKey>> shards(1);
  size_t shard_bytes = 0;
  for (const TensorKey& key : TensorKeys(spec)) {
    const size_t tensor_bytes = TensorBytes(spec, key.role);
    if (shard_bytes > 0 && shard_bytes + tensor_bytes > max_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(key);
    shard_bytes += tensor_bytes;
  }
  return shards;
}

class ModelWriter {
 public:
  ModelWriter(const spec::ModelSpec& spec,
              const ModelFamily& family,
              uint64_t seed,
              std::string directory,
              const WriteProgress& progress)
      : spec_(spec),
        family_(family),
        seed_(seed),
        directory_(std::move(directory)),
        progress_(progress) {
    for (const TensorKey& key : TensorKeys(spec)) {
      total_bytes_ += TensorBytes(spec, key.role);
    }
  }

  absl::Status Write(size_t max_shard_bytes) {
    ZP_RETURN_IF_ERROR(PrepareDirectory(total_bytes_));
    const std::vector<std::vector<TensorKey>> shards = PlanShards(spec_, max_shard_bytes);
    json::object file_by_tensor;
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string file_name =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      ZP_RETURN_IF_ERROR(WriteShard(PathOf(file_name), shards[i]));
      for (const TensorKey& key : shards[i]) {
        file_by_tensor[family_.tensor_name(key)] = file_name;
      }
    }
    const json::object index = {{"metadata", {{"total_size", total_bytes_}}},
                                {"weight_map", std::move(file_by_tensor)}};
    ZP_RETURN_IF_ERROR(WriteFile(PathOf("model.safetensors.index.json"), json::serialize(index)));
    return WriteSmallFiles();
  }

  absl::Status WriteFilesOnly() {
    ZP_RETURN_IF_ERROR(PrepareDirectory(0));
    return WriteSmallFiles();
  }

 private:
  absl::Status WriteSmallFiles() {
    ZP_RETURN_IF_ERROR(WriteFile(PathOf("tokenizer.json"), ByteTokenizerJson(spec_.vocab_count)));
    ZP_RETURN_IF_ERROR(
        WriteFile(PathOf("tokenizer_config.json"), ByteTokenizerConfigJson(spec_.vocab_count)));
    // Last: a directory with a config.json is a whole model.
    return WriteFile(PathOf("config.json"), json::serialize(family_.config_of(spec_)));
  }

  std::string PathOf(std::string_view name) const { return (fs::path(directory_) / name).string(); }

  absl::Status PrepareDirectory(size_t weight_bytes) {
    std::error_code error;
    fs::create_directories(directory_, error);
    if (error) {
      return absl::InvalidArgumentError(
          fmt::format("{}: cannot be created: {}", directory_, error.message()));
    }
    if (fs::exists(PathOf("config.json"), error)) {
      return absl::AlreadyExistsError(fmt::format("{}: already holds a model", directory_));
    }
    const fs::space_info space = fs::space(directory_, error);
    if (!error && space.available < weight_bytes) {
      return absl::ResourceExhaustedError(
          fmt::format("{}: the model takes {} bytes, but the disk has {} left",
                      directory_,
                      weight_bytes,
                      space.available));
    }
    return absl::OkStatus();
  }

  absl::Status WriteShard(const std::string& path, const std::vector<TensorKey>& keys) {
    ZP_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path));
    ZP_RETURN_IF_ERROR(file.Write(ShardHeader(keys)));
    for (const TensorKey& key : keys) {
      ZP_RETURN_IF_ERROR(WriteTensor(key, file));
    }
    return file.Close();
  }

  std::string ShardHeader(const std::vector<TensorKey>& keys) const {
    std::vector<TensorOutline> tensors;
    tensors.reserve(keys.size());
    for (const TensorKey& key : keys) {
      tensors.push_back({family_.tensor_name(key), spec_.weight_dtype, ShapeOf(spec_, key.role)});
    }
    return SafetensorsHeader(tensors);
  }

  absl::Status WriteTensor(const TensorKey& key, OutputFile& file) {
    const RandomTensor numbers = SyntheticNumbers(spec_, seed_, key);
    const size_t element_bytes = spec::SizeOf(spec_.weight_dtype);
    const size_t tensor_bytes = TensorBytes(spec_, key.role);
    for (size_t offset = 0; offset < tensor_bytes; offset += kChunkBytes) {
      chunk_.resize(std::min(kChunkBytes, tensor_bytes - offset));
      numbers.Fill(static_cast<int64_t>(offset / element_bytes), chunk_);
      ZP_RETURN_IF_ERROR(file.Write(chunk_));
      done_bytes_ += chunk_.size();
      progress_(static_cast<int64_t>(done_bytes_), static_cast<int64_t>(total_bytes_));
    }
    return absl::OkStatus();
  }

  const spec::ModelSpec& spec_;
  const ModelFamily& family_;
  const uint64_t seed_;
  const std::string directory_;
  const WriteProgress& progress_;
  size_t total_bytes_ = 0;
  size_t done_bytes_ = 0;
  std::vector<std::byte> chunk_;
};

absl::StatusOr<const ModelFamily*> FamilyFor(const spec::ModelSpec& spec) {
  if (spec.vocab_count < kByteTokens) {
    return absl::InvalidArgumentError(
        fmt::format("a vocabulary of {} tokens is too small for the byte-level tokenizer that a "
                    "synthetic checkpoint gets: it needs {}",
                    spec.vocab_count,
                    kByteTokens));
  }
  return FindFamily(spec.family);
}

}  // namespace

absl::Status WriteSynthetic(const spec::ModelSpec& spec,
                            uint64_t seed,
                            const std::string& directory,
                            const WriteProgress& progress,
                            int64_t max_shard_bytes) {
  ZP_ASSIGN_OR_RETURN(const ModelFamily* family, FamilyFor(spec));
  return ModelWriter(spec, *family, seed, directory, progress).Write(max_shard_bytes);
}

absl::Status WriteSyntheticFiles(const spec::ModelSpec& spec, const std::string& directory) {
  ZP_ASSIGN_OR_RETURN(const ModelFamily* family, FamilyFor(spec));
  return ModelWriter(spec, *family, /*seed=*/0, directory, {}).WriteFilesOnly();
}

}  // namespace zp::checkpoint
