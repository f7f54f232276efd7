#include "checkpoint/model_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/checksum.h"
#include "checkpoint/output_file.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr uintmax_t kMaxSmallFileBytes = uintmax_t{64} << 20;  // Qwen3's tokenizer.json: 11 MB

struct ModelFile {
  fs::path path;
  uintmax_t size_bytes = 0;
  int64_t changed_ns = 0;
};

// In the order of their names.
absl::StatusOr<std::vector<ModelFile>> ListFiles(const std::string& directory) {
  std::vector<ModelFile> files;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code file_error;
    if (entry->path().filename().string().starts_with('.') || !entry->is_regular_file(file_error)) {
      continue;
    }
    ModelFile file{entry->path(), entry->file_size(file_error)};
    file.changed_ns = entry->last_write_time(file_error).time_since_epoch().count();
    if (file_error) {
      return absl::InvalidArgumentError(
          fmt::format("{}: {}", entry->path().string(), file_error.message()));
    }
    files.push_back(std::move(file));
  }
  if (error) {
    return absl::NotFoundError(fmt::format("{}: {}", directory, error.message()));
  }
  std::ranges::sort(files, {}, &ModelFile::path);
  return files;
}

bool IsWeights(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
}

absl::StatusOr<std::string> ReadAll(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (!stream.is_open() || stream.bad()) {
    return absl::InvalidArgumentError(fmt::format("{}: cannot be read", path.string()));
  }
  return text;
}

}  // namespace

absl::Status CopySmallFiles(const std::string& from_directory, const std::string& to_directory) {
  ZP_ASSIGN_OR_RETURN(const std::vector<ModelFile> files, ListFiles(from_directory));
  for (const ModelFile& file : files) {
    if (IsWeights(file.path) || file.size_bytes > kMaxSmallFileBytes) {
      continue;
    }
    ZP_ASSIGN_OR_RETURN(const std::string text, ReadAll(file.path));
    ZP_RETURN_IF_ERROR(ReplaceFile((fs::path(to_directory) / file.path.filename()).string(), text));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Fingerprint(const std::string& directory) {
  ZP_ASSIGN_OR_RETURN(const std::vector<ModelFile> files, ListFiles(directory));
  ZP_ASSIGN_OR_RETURN(std::string facts, ReadAll(fs::path(directory) / "config.json"));
  for (const ModelFile& file : files) {
    if (IsWeights(file.path)) {
      facts += fmt::format(
          "\n{} {} {}", file.path.filename().string(), file.size_bytes, file.changed_ns);
    }
  }
  return fmt::format("{:016x}", base::Checksum(std::as_bytes(std::span(facts))));
}

void DropCachedWeights(const std::string& directory) {
  const absl::StatusOr<std::vector<ModelFile>> files = ListFiles(directory);
  if (!files.ok()) {
    return;
  }
  for (const ModelFile& file : *files) {
    const int descriptor =
        IsWeights(file.path) ? open(file.path.c_str(), O_RDONLY | O_CLOEXEC) : -1;
    if (descriptor >= 0) {
      posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
      close(descriptor);
    }
  }
}

}  // namespace zp::checkpoint
