#include <algorithm>
#include <filesystem>
#include <functional>
#include <optional>
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

enum class FilePart { kNumbers, kFp8Numbers, kFp8Scales };

// A tensor of the files and where its numbers come from.
struct FileTensor {
  TensorOutline outline;
  TensorKey key;
  FilePart part = FilePart::kNumbers;
};

// The model's tensors, in order.
std::vector<FileTensor> ListTensors(const spec::ModelSpec& spec,
                                    const ModelFamily& family,
                                    const std::optional<spec::Fp8Blocks>& fp8_blocks) {
  std::vector<FileTensor> tensors;
  for (const TensorKey& key : TensorKeys(spec)) {
    const std::string name = family.tensor_name(key);
    const std::vector<int64_t> shape = ShapeOf(spec, key.role);
    if (fp8_blocks.has_value() && IsFp8Role(spec, key.role)) {
      const std::vector<int64_t> scales = {fp8_blocks->ScaleRows(shape[0]),
                                           fp8_blocks->ScaleCols(shape[1])};
      tensors.push_back(
          {{name, spec::DType::kF32, shape, /*is_fp8=*/true}, key, FilePart::kFp8Numbers});
      tensors.push_back(
          {{name + "_scale_inv", spec::DType::kF32, scales}, key, FilePart::kFp8Scales});
    } else {
      tensors.push_back({{name, spec.weight_dtype, shape}, key, FilePart::kNumbers});
    }
  }
  return tensors;
}

// The tensors cut into files of at most `max_bytes` (or of one tensor); in each the wider numbers
// come first.
std::vector<std::vector<FileTensor>> PlanShards(const std::vector<FileTensor>& tensors,
                                                size_t max_bytes) {
  std::vector<std::vector<FileTensor>> shards(1);
  size_t shard_bytes = 0;
  for (const FileTensor& tensor : tensors) {
    const size_t tensor_bytes = BytesOf(tensor.outline);
    if (shard_bytes > 0 && shard_bytes + tensor_bytes > max_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(tensor);
    shard_bytes += tensor_bytes;
  }
  for (std::vector<FileTensor>& shard : shards) {
    std::ranges::stable_sort(shard, std::ranges::greater(), [](const FileTensor& tensor) {
      return ElementBytes(tensor.outline);
    });
  }
  return shards;
}

class ModelWriter {
 public:
  ModelWriter(const spec::ModelSpec& spec,
              const ModelFamily& family,
              uint64_t seed,
              std::string directory,
              const std::optional<spec::Fp8Blocks>& fp8_blocks,
              const WriteProgress& progress)
      : spec_(spec),
        family_(family),
        seed_(seed),
        directory_(std::move(directory)),
        fp8_blocks_(fp8_blocks),
        progress_(progress),
        tensors_(ListTensors(spec, family, fp8_blocks)) {
    for (const FileTensor& tensor : tensors_) {
      total_bytes_ += BytesOf(tensor.outline);
    }
  }

  absl::Status Write(size_t max_shard_bytes) {
    ZP_RETURN_IF_ERROR(PrepareDirectory(total_bytes_));
    const std::vector<std::vector<FileTensor>> shards = PlanShards(tensors_, max_shard_bytes);
    json::object file_by_tensor;
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string file_name =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      ZP_RETURN_IF_ERROR(WriteShard(PathOf(file_name), shards[i]));
      for (const FileTensor& tensor : shards[i]) {
        file_by_tensor[tensor.outline.name] = file_name;
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
    json::object config = family_.config_of(spec_);
    if (fp8_blocks_.has_value()) {
      config["quantization_config"] = {
          {"quant_method", "fp8"},
          {"fmt", "e4m3"},
          {"activation_scheme", "dynamic"},
          {"weight_block_size", {fp8_blocks_->rows, fp8_blocks_->cols}}};
    }
    return WriteFile(PathOf("config.json"), json::serialize(config));
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

  absl::Status WriteShard(const std::string& path, const std::vector<FileTensor>& tensors) {
    ZP_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path));
    ZP_RETURN_IF_ERROR(file.Write(ShardHeader(tensors)));
    for (const FileTensor& tensor : tensors) {
      ZP_RETURN_IF_ERROR(WriteTensor(tensor, file));
    }
    return file.Close();
  }

  static std::string ShardHeader(const std::vector<FileTensor>& tensors) {
    std::vector<TensorOutline> outlines;
    outlines.reserve(tensors.size());
    for (const FileTensor& tensor : tensors) {
      outlines.push_back(tensor.outline);
    }
    return SafetensorsHeader(outlines);
  }

  RandomTensor NumbersOf(const FileTensor& tensor) const {
    switch (tensor.part) {
      case FilePart::kFp8Numbers:
        return SyntheticFp8Numbers(seed_, tensor.key);
      case FilePart::kFp8Scales:
        return SyntheticFp8Scales(spec_, seed_, tensor.key);
      case FilePart::kNumbers:
        break;
    }
    return SyntheticNumbers(spec_, seed_, tensor.key);
  }

  absl::Status WriteTensor(const FileTensor& tensor, OutputFile& file) {
    const RandomTensor numbers = NumbersOf(tensor);
    const size_t element_bytes = ElementBytes(tensor.outline);
    const size_t tensor_bytes = BytesOf(tensor.outline);
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
  const std::optional<spec::Fp8Blocks> fp8_blocks_;
  const WriteProgress& progress_;
  const std::vector<FileTensor> tensors_;
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
                            int64_t max_shard_bytes,
                            std::optional<spec::Fp8Blocks> fp8_blocks) {
  ZP_ASSIGN_OR_RETURN(const ModelFamily* family, FamilyFor(spec));
  return ModelWriter(spec, *family, seed, directory, fp8_blocks, progress).Write(max_shard_bytes);
}

absl::Status WriteSyntheticFiles(const spec::ModelSpec& spec,
                                 const std::string& directory,
                                 std::optional<spec::Fp8Blocks> fp8_blocks) {
  ZP_ASSIGN_OR_RETURN(const ModelFamily* family, FamilyFor(spec));
  return ModelWriter(spec, *family, /*seed=*/0, directory, fp8_blocks, {}).WriteFilesOnly();
}

}  // namespace zp::checkpoint
