// The index of a packed directory: a model whose experts lie in files of their own, one per layer,
// each expert a blob of the bytes that the kernels read. docs/packed_format.md describes it.
//
// A directory is packed if it has the index, which is written last. While it is being packed, an
// unfinished index says which layers are done.
// Thread safety: functions of the files alone; nobody else may write the directory meanwhile.
// Errors: NotFound, InvalidArgument or Unimplemented (another version) with the file, the field,
// what was expected and what was found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

struct PackedLayer {
  std::string path = {};                 // empty: the layer has no experts, or is not packed yet
  std::vector<uint64_t> checksums = {};  // [expert_count], base::Checksum of each blob
};

struct PackedExperts {
  std::string directory = {};
  std::string layout = {};  // ops::Kernels::layout_name(fp8_blocks) of the kernels that packed
  int32_t expert_count = 0;
  // Expert e of a layer is the bytes [e * expert_bytes, (e + 1) * expert_bytes) of its file.
  size_t expert_bytes = 0;  // a multiple of 4096
  size_t gate_up_offset = 0;
  size_t down_offset = 0;
  // Whether the layers' files are there: a host may have the index alone and read the experts from
  // others.
  bool has_files = true;
  // Set if the experts' numbers are 8-bit ones, whose scales begin at scales_offset.
  std::optional<spec::Fp8Blocks> fp8_blocks = std::nullopt;
  size_t scales_offset = 0;
  std::vector<PackedLayer> layers = {};  // [layer_count]
};

// What is there of a directory that is still being packed.
struct UnfinishedPacking {
  std::string source = {};  // Fingerprint (model_files.h) of the checkpoint that is packed
  PackedExperts experts = {};
};

bool IsPacked(const std::string& directory);
bool IsPackingUnfinished(const std::string& directory);

// Reads and checks the index: counts against `spec`, names, and that each file is there in its full
// length, or that none is there. Blobs are not read: whoever reads one holds it against its
// checksum.
absl::StatusOr<PackedExperts> ReadPackedExperts(const std::string& directory,
                                                const spec::ModelSpec& spec);
absl::StatusOr<UnfinishedPacking> ReadUnfinishedPacking(const std::string& directory,
                                                        const spec::ModelSpec& spec);

// Both return when the index is on the disk. Writing the final index removes the unfinished one.
absl::Status WritePackedExperts(const PackedExperts& experts);
absl::Status WriteUnfinishedPacking(const UnfinishedPacking& packing);

// "experts-00007.bin"
std::string PackedFileName(int32_t layer);

}  // namespace zp::checkpoint
