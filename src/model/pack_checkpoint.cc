#include "model/pack_checkpoint.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "checkpoint/model_files.h"
#include "checkpoint/output_file.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/tensor_table.h"
#include "fmt/format.h"
#include "memory/buffer.h"
#include "model/expert_blob.h"

namespace zp::model {
namespace {

namespace fs = std::filesystem;
using checkpoint::OutputFile;
using checkpoint::TensorKey;
using checkpoint::TensorOutline;

constexpr const char* kDenseFileName = "model.safetensors";
constexpr const char* kPartialSuffix = ".partial";

// Keeps other runs out of a directory while it lives; the system lets go of it with the process.
class DirectoryLock {
 public:
  ~DirectoryLock() {
    if (descriptor_ >= 0) {
      close(descriptor_);
    }
  }

  absl::Status Take(const std::string& directory) {
    descriptor_ = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor_ < 0) {
      return absl::InvalidArgumentError(
          fmt::format("{}: cannot open: {}", directory, std::strerror(errno)));
    }
    if (flock(descriptor_, LOCK_EX | LOCK_NB) == 0) {
      return absl::OkStatus();
    }
    return absl::UnavailableError(
        errno == EWOULDBLOCK ? fmt::format("{}: another run is writing it", directory)
                             : fmt::format("{}: cannot lock: {}", directory, std::strerror(errno)));
  }

 private:
  int descriptor_ = -1;
};

bool Exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// A tensor that is no expert's, where it comes from and what it becomes.
struct DenseTensor {
  TensorKey key;
  TensorOutline outline;
};

// Wider numbers first: each then lies aligned in the file.
std::vector<DenseTensor> ListDenseTensors(const checkpoint::Checkpoint& checkpoint) {
  std::vector<DenseTensor> tensors;
  for (const TensorKey& key : checkpoint::TensorKeys(checkpoint.spec())) {
    if (key.expert < 0) {
      tensors.push_back({key,
                         {checkpoint.TensorName(key.role, key.layer),
                          checkpoint.DTypeOf(key.role, key.layer),
                          checkpoint::ShapeOf(checkpoint.spec(), key.role)}});
    }
  }
  std::ranges::stable_sort(tensors, std::ranges::greater(), [](const DenseTensor& tensor) {
    return spec::SizeOf(tensor.outline.dtype);
  });
  return tensors;
}

class Packer {
 public:
  Packer(const checkpoint::Checkpoint& checkpoint,
         const ops::Kernels& kernels,
         base::ThreadPool& pool,
         const std::string& directory,
         const ReportPackProgress& report)
      : checkpoint_(checkpoint),
        spec_(checkpoint.spec()),
        kernels_(kernels),
        layout_(kernels.expert_layout(
            spec_.model_dim, spec_.expert_dim, checkpoint.expert_fp8_blocks())),
        pool_(pool),
        directory_(directory),
        report_(report),
        dense_tensors_(ListDenseTensors(checkpoint)) {}

  absl::StatusOr<PackProgress> Pack() {
    ZP_RETURN_IF_ERROR(EnterDirectory());
    ZP_RETURN_IF_ERROR(BeginOrGoOn());
    RemovePartialFiles();
    ZP_RETURN_IF_ERROR(CountBytes());
    ZP_RETURN_IF_ERROR(checkpoint::WriteUnfinishedPacking(packing_));
    ZP_RETURN_IF_ERROR(checkpoint::CopySmallFiles(checkpoint_.directory(), directory_));
    if (!Exists(PathOf(kDenseFileName))) {
      ZP_RETURN_IF_ERROR(WriteDenseTensors());
    }
    for (int32_t layer = 0; layer < spec_.layer_count; ++layer) {
      if (IsMissing(layer)) {
        ZP_RETURN_IF_ERROR(PackLayer(layer));
      }
    }
    ZP_RETURN_IF_ERROR(checkpoint::WritePackedExperts(packing_.experts));
    return Progress();
  }

 private:
  std::string PathOf(std::string_view name) const { return (fs::path(directory_) / name).string(); }

  bool IsMissing(int32_t layer) const {
    return spec_.layer_is_moe[layer] && packing_.experts.layers[layer].path.empty();
  }

  int64_t LayerBytes() const { return spec_.expert_count * static_cast<int64_t>(layout_.bytes); }

  PackProgress Progress() const { return {written_bytes_, total_bytes_}; }

  absl::Status EnterDirectory() {
    std::error_code error;
    fs::create_directories(directory_, error);
    if (error) {
      return absl::InvalidArgumentError(
          fmt::format("{}: cannot be created: {}", directory_, error.message()));
    }
    return lock_.Take(directory_);
  }

  // Believes what an earlier run of the same packing left, and nothing else.
  absl::Status BeginOrGoOn() {
    if (checkpoint::IsPacked(directory_)) {
      return absl::AlreadyExistsError(fmt::format("{}: holds a packed model", directory_));
    }
    ZP_ASSIGN_OR_RETURN(const std::string source, checkpoint::Fingerprint(checkpoint_.directory()));
    if (!checkpoint::IsPackingUnfinished(directory_)) {
      packing_ = {source, EmptyIndex()};
      return CheckNothingElse();
    }
    ZP_ASSIGN_OR_RETURN(packing_, checkpoint::ReadUnfinishedPacking(directory_, spec_));
    ZP_RETURN_IF_ERROR(CheckPackedLayout(packing_.experts, spec_, kernels_));
    if (packing_.experts.fp8_blocks != layout_.fp8_blocks) {
      return absl::FailedPreconditionError(
          fmt::format("{}: holds an unfinished packing with layout '{}', but {} is packed with "
                      "layout '{}'; remove it to begin anew",
                      directory_,
                      packing_.experts.layout,
                      checkpoint_.directory(),
                      kernels_.layout_name(layout_.fp8_blocks)));
    }
    if (packing_.source != source) {
      return absl::FailedPreconditionError(
          fmt::format("{}: holds an unfinished packing of another checkpoint than {} is now "
                      "(fingerprints {} and {}); remove it to begin anew",
                      directory_,
                      checkpoint_.directory(),
                      packing_.source,
                      source));
    }
    return absl::OkStatus();
  }

  checkpoint::PackedExperts EmptyIndex() const {
    return {.directory = directory_,
            .layout = kernels_.layout_name(layout_.fp8_blocks),
            .expert_count = spec_.expert_count,
            .expert_bytes = layout_.bytes,
            .gate_up_offset = layout_.gate_up_offset,
            .down_offset = layout_.down_offset,
            .fp8_blocks = layout_.fp8_blocks,
            .scales_offset = layout_.scales_offset,
            .layers = std::vector<checkpoint::PackedLayer>(spec_.layer_count)};
  }

  absl::Status CheckNothingElse() const {
    std::error_code error;
    for (fs::directory_iterator entry(directory_, error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      if (!name.starts_with("experts.json.")) {  // a first index that was never finished
        return absl::AlreadyExistsError(fmt::format(
            "{}: holds '{}' and no unfinished packing; name an empty directory", directory_, name));
      }
    }
    return error ? absl::InvalidArgumentError(
                       fmt::format("{}: cannot be read: {}", directory_, error.message()))
                 : absl::OkStatus();
  }

  void RemovePartialFiles() const {
    std::error_code ignored;
    fs::remove(PathOf(kDenseFileName) + kPartialSuffix, ignored);
    for (int32_t layer = 0; layer < spec_.layer_count; ++layer) {
      if (IsMissing(layer)) {
        const std::string path = PathOf(checkpoint::PackedFileName(layer));
        fs::remove(path, ignored);  // its checksums were not noted
        fs::remove(path + kPartialSuffix, ignored);
      }
    }
  }

  // What this run will write, held against the disk.
  absl::Status CountBytes() {
    if (!Exists(PathOf(kDenseFileName))) {
      for (const DenseTensor& tensor : dense_tensors_) {
        total_bytes_ += static_cast<int64_t>(BytesOf(tensor.outline));
      }
    }
    for (int32_t layer = 0; layer < spec_.layer_count; ++layer) {
      total_bytes_ += IsMissing(layer) ? LayerBytes() : 0;
    }
    std::error_code error;
    const fs::space_info space = fs::space(directory_, error);
    if (!error && space.available < static_cast<uintmax_t>(total_bytes_)) {
      return absl::ResourceExhaustedError(
          fmt::format("{}: packing takes {} bytes more, but the disk has {} left",
                      directory_,
                      total_bytes_,
                      space.available));
    }
    return absl::OkStatus();
  }

  absl::Status WriteDenseTensors() {
    const std::string path = PathOf(kDenseFileName);
    ZP_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path + kPartialSuffix));
    std::vector<TensorOutline> outlines;
    for (const DenseTensor& tensor : dense_tensors_) {
      outlines.push_back(tensor.outline);
    }
    const std::string header = checkpoint::SafetensorsHeader(outlines);
    ZP_RETURN_IF_ERROR(file.Write(header));
    uint64_t offset = header.size();
    for (const DenseTensor& tensor : dense_tensors_) {
      const checkpoint::TensorView& view = checkpoint_.Tensor(tensor.key.role, tensor.key.layer);
      ZP_RETURN_IF_ERROR(file.WriteAt(offset, view.bytes));
      file.DropPages(offset, view.bytes.size());
      offset += view.bytes.size();
      Report(static_cast<int64_t>(view.bytes.size()), /*worker=*/0);
      checkpoint_.Release(view);
    }
    return Finish(file, path);
  }

  absl::Status PackLayer(int32_t layer) {
    const std::string path = PathOf(checkpoint::PackedFileName(layer));
    ZP_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path + kPartialSuffix));
    std::vector<uint64_t> checksums(spec_.expert_count);
    std::vector<absl::Status> statuses(spec_.expert_count);
    const auto pack = layout_.fp8_blocks.has_value() ? PackFp8ExpertBlob : PackExpertBlob;
    pool_.ParallelFor(spec_.expert_count, [&](int64_t expert, int worker) {
      const std::span<std::byte> blob = Scratch(worker);
      statuses[expert] = pack(checkpoint_, kernels_, layer, static_cast<int32_t>(expert), blob);
      if (statuses[expert].ok()) {
        checksums[expert] = base::Checksum(blob);
        statuses[expert] = WriteBlob(file, expert, blob);
      }
      Report(static_cast<int64_t>(blob.size()), worker);
    });
    for (const absl::Status& status : statuses) {
      ZP_RETURN_IF_ERROR(status);
    }
    ZP_RETURN_IF_ERROR(Finish(file, path));
    checkpoint::DropCachedWeights(checkpoint_.directory());
    packing_.experts.layers[layer] = {path, std::move(checksums)};
    return checkpoint::WriteUnfinishedPacking(packing_);
  }

  // Experts are handed out in rising order: the one that lies two rounds back is written, and most
  // likely on the disk, so that dropping it waits for nothing.
  absl::Status WriteBlob(const OutputFile& file,
                         int64_t expert,
                         std::span<const std::byte> blob) const {
    ZP_RETURN_IF_ERROR(file.WriteAt(expert * blob.size(), blob));
    const int64_t earlier = expert - 2 * int64_t{pool_.thread_count()};
    if (earlier >= 0) {
      file.DropPages(earlier * blob.size(), blob.size());
    }
    return absl::OkStatus();
  }

  static absl::Status Finish(OutputFile& file, const std::string& path) {
    ZP_RETURN_IF_ERROR(file.Sync());
    file.DropPages(0, OutputFile::kToTheEnd);
    ZP_RETURN_IF_ERROR(file.Close());
    return checkpoint::RenameDurably(path + kPartialSuffix, path);
  }

  std::span<std::byte> Scratch(int worker) {
    scratch_[worker].EnsureBytes(layout_.bytes, "packing");
    return scratch_[worker].bytes();
  }

  void Report(int64_t new_bytes, int worker) {
    written_bytes_ += new_bytes;
    if (worker == 0) {
      report_(Progress());
    }
  }

  const checkpoint::Checkpoint& checkpoint_;
  const spec::ModelSpec& spec_;
  const ops::Kernels& kernels_;
  const ops::ExpertLayout layout_;
  base::ThreadPool& pool_;
  const std::string& directory_;
  const ReportPackProgress& report_;
  const std::vector<DenseTensor> dense_tensors_;
  DirectoryLock lock_;
  checkpoint::UnfinishedPacking packing_;
  std::vector<memory::Buffer> scratch_ = std::vector<memory::Buffer>(pool_.thread_count());
  std::atomic<int64_t> written_bytes_ = 0;
  int64_t total_bytes_ = 0;
};

}  // namespace

absl::StatusOr<PackProgress> PackCheckpoint(const checkpoint::Checkpoint& checkpoint,
                                            const ops::Kernels& kernels,
                                            base::ThreadPool& pool,
                                            const std::string& directory,
                                            const ReportPackProgress& report) {
  if (!checkpoint.has_expert_tensors()) {
    return absl::InvalidArgumentError(fmt::format("{}: is packed already", checkpoint.directory()));
  }
  return Packer(checkpoint, kernels, pool, directory, report).Pack();
}

absl::Status CheckPackedLayout(const checkpoint::PackedExperts& experts,
                               const spec::ModelSpec& spec,
                               const ops::Kernels& kernels) {
  const auto wrong = [&](std::string_view field, const auto& found, const auto& expected) {
    return absl::FailedPreconditionError(fmt::format(
        "{}: its experts were packed with {} '{}', but the kernels {} read '{}'; pack the "
        "checkpoint again for them",
        experts.directory,
        field,
        found,
        kernels.name(),
        expected));
  };
  const std::string layout_name = kernels.layout_name(experts.fp8_blocks);
  if (experts.layout != layout_name) {
    return wrong("layout", experts.layout, layout_name);
  }
  const ops::ExpertLayout layout =
      kernels.expert_layout(spec.model_dim, spec.expert_dim, experts.fp8_blocks);
  if (experts.expert_bytes != layout.bytes) {
    return wrong("expert_bytes", experts.expert_bytes, layout.bytes);
  }
  if (experts.gate_up_offset != layout.gate_up_offset) {
    return wrong("gate_up_offset", experts.gate_up_offset, layout.gate_up_offset);
  }
  if (experts.down_offset != layout.down_offset) {
    return wrong("down_offset", experts.down_offset, layout.down_offset);
  }
  if (experts.scales_offset != layout.scales_offset) {
    return wrong("scales_offset", experts.scales_offset, layout.scales_offset);
  }
  return absl::OkStatus();
}

}  // namespace zp::model
