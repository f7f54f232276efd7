#include "checkpoint/packed_experts.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"
#include "checkpoint/fp8.h"
#include "checkpoint/json_file.h"
#include "checkpoint/output_file.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr const char* kIndexName = "experts.json";
constexpr const char* kUnfinishedIndexName = "experts.json.partial";
constexpr const char* kFormat = "zeroprefill packed experts";
constexpr int64_t kVersion = 1;
constexpr int64_t kFp8Version = 2;  // with experts in 8 bits; otherwise as version 1
constexpr int64_t kMaxIndexBytes = int64_t{128} << 20;  // Qwen3-235B-A22B: 230 KB
constexpr int64_t kMaxExpertBytes = int64_t{1} << 40;
constexpr int64_t kMaxVersion = 1'000'000;
constexpr int64_t kDirectIoBytes = 4096;  // offsets and lengths of direct I/O are multiples of it
constexpr int64_t kPartAlignment = 64;    // what the kernels ask of packed weights
constexpr size_t kChecksumDigits = 16;

std::string PathIn(const std::string& directory, std::string_view name) {
  return (fs::path(directory) / name).string();
}

bool Exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// Returns the version.
absl::StatusOr<int64_t> ReadFormat(const JsonFile& index) {
  ZP_ASSIGN_OR_RETURN(const std::string format, index.String("format"));
  if (format != kFormat) {
    return index.Wrong("format", fmt::format("is '{}', but must be '{}'", format, kFormat));
  }
  ZP_ASSIGN_OR_RETURN(const int64_t version, index.Integer("version", 1, kMaxVersion));
  if (version != kVersion && version != kFp8Version) {
    return index.Unsupported(
        "version",
        fmt::format(
            "is {}, but this program reads versions {} and {}", version, kVersion, kFp8Version));
  }
  if (index.Has("fp8_block_size") != (version == kFp8Version)) {
    return index.Wrong("fp8_block_size",
                       fmt::format("is {}, but experts have 8-bit numbers in version {} alone, and "
                                   "the version is {}",
                                   version == kFp8Version ? "missing" : "there",
                                   kFp8Version,
                                   version));
  }
  return version;
}

absl::StatusOr<size_t> ReadAligned(
    const JsonFile& index, std::string_view field, int64_t min, int64_t max, int64_t alignment) {
  ZP_ASSIGN_OR_RETURN(const int64_t value, index.Integer(field, min, max));
  if (value % alignment != 0) {
    return index.Wrong(field, fmt::format("is {}, but must be a multiple of {}", value, alignment));
  }
  return static_cast<size_t>(value);
}

absl::Status ReadFp8(const JsonFile& index, PackedExperts& experts) {
  ZP_ASSIGN_OR_RETURN(const std::vector<int64_t> extents,
                      index.Integers("fp8_block_size", 1, kMaxFp8BlockExtent));
  if (extents.size() != 2) {
    return index.Wrong("fp8_block_size",
                       fmt::format("has {} numbers, but must have 2: rows and columns of a block",
                                   extents.size()));
  }
  experts.fp8_blocks = spec::Fp8Blocks{extents[0], extents[1]};
  const auto last_byte = static_cast<int64_t>(experts.expert_bytes) - 1;
  ZP_ASSIGN_OR_RETURN(experts.scales_offset,
                      ReadAligned(index, "scales_offset", 0, last_byte, kPartAlignment));
  return absl::OkStatus();
}

// What all layers have in common.
absl::StatusOr<PackedExperts> ReadCommon(const JsonFile& index,
                                         const std::string& directory,
                                         const spec::ModelSpec& spec) {
  ZP_ASSIGN_OR_RETURN(const int64_t version, ReadFormat(index));
  PackedExperts experts;
  experts.directory = directory;
  experts.layers.resize(spec.layer_count);
  ZP_ASSIGN_OR_RETURN(experts.layout, index.String("layout"));
  ZP_ASSIGN_OR_RETURN(experts.expert_count, index.Integer("expert_count", 1, INT32_MAX));
  if (experts.expert_count != spec.expert_count) {
    return index.Wrong(
        "expert_count",
        fmt::format("is {}, but config.json promises {}", experts.expert_count, spec.expert_count));
  }
  ZP_ASSIGN_OR_RETURN(
      experts.expert_bytes,
      ReadAligned(index, "expert_bytes", kDirectIoBytes, kMaxExpertBytes, kDirectIoBytes));
  const auto last_byte = static_cast<int64_t>(experts.expert_bytes) - 1;
  ZP_ASSIGN_OR_RETURN(experts.gate_up_offset,
                      ReadAligned(index, "gate_up_offset", 0, last_byte, kPartAlignment));
  ZP_ASSIGN_OR_RETURN(experts.down_offset,
                      ReadAligned(index, "down_offset", 0, last_byte, kPartAlignment));
  if (version == kFp8Version) {
    ZP_RETURN_IF_ERROR(ReadFp8(index, experts));
  }
  return experts;
}

absl::StatusOr<std::vector<uint64_t>> ReadChecksums(const JsonFile& entry, int32_t expert_count) {
  ZP_ASSIGN_OR_RETURN(const std::vector<std::string> texts, entry.Strings("checksums"));
  if (texts.size() != static_cast<size_t>(expert_count)) {
    return entry.Wrong(
        "checksums",
        fmt::format("has {} elements, but there are {} experts", texts.size(), expert_count));
  }
  std::vector<uint64_t> checksums;
  checksums.reserve(texts.size());
  for (const std::string& text : texts) {
    uint64_t& checksum = checksums.emplace_back();
    const char* end = text.data() + text.size();
    const auto [read_end, error] = std::from_chars(text.data(), end, checksum, 16);
    if (error != std::errc() || read_end != end || text.size() != kChecksumDigits) {
      return entry.Wrong("checksums",
                         fmt::format("has '{}' for expert {}, but must have {} hexadecimal digits",
                                     text,
                                     checksums.size() - 1,
                                     kChecksumDigits));
    }
  }
  return checksums;
}

absl::Status CheckFileSize(const std::string& path, const PackedExperts& experts) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    return absl::NotFoundError(
        fmt::format("{}: is no regular file, though the index of packed experts names it", path));
  }
  const uint64_t size_bytes = fs::file_size(path, error);
  const uint64_t expected_bytes = experts.expert_count * uint64_t{experts.expert_bytes};
  if (error || size_bytes != expected_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: has {} bytes, but {} experts of {} bytes take {}: the file is truncated "
                    "or of another model",
                    path,
                    error ? 0 : size_bytes,
                    experts.expert_count,
                    experts.expert_bytes,
                    expected_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<PackedLayer> ReadLayer(const JsonFile& entry, const PackedExperts& experts) {
  PackedLayer layer;
  ZP_ASSIGN_OR_RETURN(const std::string file_name, entry.FileName("file"));
  layer.path = PathIn(experts.directory, file_name);
  ZP_ASSIGN_OR_RETURN(layer.checksums, ReadChecksums(entry, experts.expert_count));
  return layer;
}

// Every file in its full length.
absl::Status CheckFiles(const PackedExperts& experts) {
  for (const PackedLayer& layer : experts.layers) {
    if (!layer.path.empty()) {
      ZP_RETURN_IF_ERROR(CheckFileSize(layer.path, experts));
    }
  }
  return absl::OkStatus();
}

bool HasAnyFile(const PackedExperts& experts) {
  return std::ranges::any_of(experts.layers, [](const PackedLayer& layer) {
    std::error_code error;
    return !layer.path.empty() && fs::exists(layer.path, error);
  });
}

// Each file belongs to one layer, each layer named has experts.
absl::Status ReadLayers(const JsonFile& index,
                        const spec::ModelSpec& spec,
                        bool all_required,
                        PackedExperts& experts) {
  ZP_ASSIGN_OR_RETURN(const JsonFile entries, index.Object("layers"));
  std::set<std::string> paths;
  for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
    const std::string field = std::to_string(layer);
    if (!spec.layer_is_moe[layer] || (!entries.Has(field) && !all_required)) {
      continue;
    }
    if (!entries.Has(field)) {
      return entries.Wrong(
          field, fmt::format("is missing, though layer {} of config.json has experts", layer));
    }
    ZP_ASSIGN_OR_RETURN(const JsonFile entry, entries.Object(field));
    ZP_ASSIGN_OR_RETURN(experts.layers[layer], ReadLayer(entry, experts));
    if (!paths.insert(experts.layers[layer].path).second) {
      return entries.Wrong(
          field, fmt::format("names {}, as another layer does", experts.layers[layer].path));
    }
  }
  if (paths.size() != entries.object().size()) {
    return index.Wrong(
        "layers",
        fmt::format("has {} entries, but {} of them are layers with experts in config.json",
                    entries.object().size(),
                    paths.size()));
  }
  return absl::OkStatus();
}

json::object LayersJson(const PackedExperts& experts) {
  json::object layers;
  for (size_t layer = 0; layer < experts.layers.size(); ++layer) {
    const PackedLayer& packed = experts.layers[layer];
    if (packed.path.empty()) {
      continue;
    }
    json::array checksums;
    for (const uint64_t checksum : packed.checksums) {
      checksums.emplace_back(fmt::format("{:016x}", checksum));
    }
    layers[std::to_string(layer)] = {{"file", fs::path(packed.path).filename().string()},
                                     {"checksums", std::move(checksums)}};
  }
  return layers;
}

json::object IndexJson(const PackedExperts& experts) {
  json::object index = {{"format", kFormat},
                        {"version", experts.fp8_blocks.has_value() ? kFp8Version : kVersion},
                        {"layout", experts.layout},
                        {"expert_count", experts.expert_count},
                        {"expert_bytes", experts.expert_bytes},
                        {"gate_up_offset", experts.gate_up_offset},
                        {"down_offset", experts.down_offset}};
  if (experts.fp8_blocks.has_value()) {
    index["fp8_block_size"] = {experts.fp8_blocks->rows, experts.fp8_blocks->cols};
    index["scales_offset"] = experts.scales_offset;
  }
  index["layers"] = LayersJson(experts);
  return index;
}

}  // namespace

bool IsPacked(const std::string& directory) { return Exists(PathIn(directory, kIndexName)); }

bool IsPackingUnfinished(const std::string& directory) {
  return !IsPacked(directory) && Exists(PathIn(directory, kUnfinishedIndexName));
}

absl::StatusOr<PackedExperts> ReadPackedExperts(const std::string& directory,
                                                const spec::ModelSpec& spec) {
  ZP_ASSIGN_OR_RETURN(const JsonFile index,
                      JsonFile::Load(PathIn(directory, kIndexName), kMaxIndexBytes));
  ZP_ASSIGN_OR_RETURN(PackedExperts experts, ReadCommon(index, directory, spec));
  ZP_RETURN_IF_ERROR(ReadLayers(index, spec, /*all_required=*/true, experts));
  experts.has_files = HasAnyFile(experts);
  if (experts.has_files) {
    ZP_RETURN_IF_ERROR(CheckFiles(experts));
  }
  return experts;
}

absl::StatusOr<UnfinishedPacking> ReadUnfinishedPacking(const std::string& directory,
                                                        const spec::ModelSpec& spec) {
  ZP_ASSIGN_OR_RETURN(const JsonFile index,
                      JsonFile::Load(PathIn(directory, kUnfinishedIndexName), kMaxIndexBytes));
  UnfinishedPacking packing;
  ZP_ASSIGN_OR_RETURN(packing.source, index.String("source"));
  ZP_ASSIGN_OR_RETURN(packing.experts, ReadCommon(index, directory, spec));
  ZP_RETURN_IF_ERROR(ReadLayers(index, spec, /*all_required=*/false, packing.experts));
  ZP_RETURN_IF_ERROR(CheckFiles(packing.experts));
  return packing;
}

absl::Status WritePackedExperts(const PackedExperts& experts) {
  ZP_RETURN_IF_ERROR(
      ReplaceFile(PathIn(experts.directory, kIndexName), json::serialize(IndexJson(experts))));
  std::error_code ignored;  // one that stays is not read any more
  fs::remove(PathIn(experts.directory, kUnfinishedIndexName), ignored);
  return absl::OkStatus();
}

absl::Status WriteUnfinishedPacking(const UnfinishedPacking& packing) {
  json::object index = IndexJson(packing.experts);
  index["source"] = packing.source;
  return ReplaceFile(PathIn(packing.experts.directory, kUnfinishedIndexName),
                     json::serialize(index));
}

std::string PackedFileName(int32_t layer) { return fmt::format("experts-{:05}.bin", layer); }

}  // namespace zp::checkpoint
