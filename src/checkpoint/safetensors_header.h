// The header of a safetensors file: a JSON object from tensor names to dtype, shape and byte range.
//
// Apart from safetensors.h so that hostile headers can be tried without files. The grammar is
// fixed, nothing nests, so a header of any content is read in one pass without recursion.
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "spec/dtype.h"

namespace zp::checkpoint {

// Far above any published model (the header of a 36,000-tensor shard takes 5 MB), far below what
// could hurt.
constexpr uint64_t kMaxHeaderBytes = uint64_t{64} << 20;
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxRank = 8;

struct HeaderEntry {
  std::string name;
  std::optional<spec::DType> dtype = {};  // none: F8_E4M3, numbers of one byte (fp8.h)
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the data section
  uint64_t end = 0;
};

size_t ElementBytes(const HeaderEntry& entry);

// Reads the JSON text `header` of the file `path`, whose data section has `data_bytes` bytes.
// What is returned is consistent: names are unique, dtype * shape is the byte range, and the
// ranges, in the order of the entries, fill the data section without overlap or gap.
// Errors: InvalidArgument (Unimplemented for a dtype other than BF16, F16, F32, F8_E4M3) names the
// file, the tensor, what was expected and what was found.
absl::StatusOr<std::vector<HeaderEntry>> ParseSafetensorsHeader(std::string_view header,
                                                                uint64_t data_bytes,
                                                                const std::string& path);

}  // namespace zp::checkpoint
