// Byte counts and rates as people write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace zp::base {

// "4GiB", "512 MiB", "1.5GB", "4096" -> bytes. InvalidArgument names the text. Units: B,
// KB/MB/GB/TB (powers of 1000), KiB/MiB/GiB/TiB.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);

// 1536 -> "1.5 KiB"
std::string FormatBytes(int64_t bytes);

// 1234567 -> "1.23 M"; for FLOPs, parameters, tokens per second.
std::string FormatCount(double count);

}  // namespace zp::base
