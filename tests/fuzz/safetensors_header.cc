// The header of a safetensors file: any bytes are refused with a sentence or read into entries that
// keep what ParseSafetensorsHeader promises.
//
// The first byte is the size of the data section, the rest is the header.
#include "checkpoint/safetensors_header.h"

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) {
    return 0;
  }
  const uint64_t data_bytes = data[0];
  const std::string_view header(reinterpret_cast<const char*>(data + 1), size - 1);
  const auto entries = zp::checkpoint::ParseSafetensorsHeader(header, data_bytes, "fuzz");
  if (!entries.ok()) {
    return 0;
  }
  uint64_t end = 0;
  for (const zp::checkpoint::HeaderEntry& entry : *entries) {
    uint64_t size_bytes = zp::spec::SizeOf(entry.dtype);
    for (const int64_t extent : entry.shape) {
      size_bytes *= static_cast<uint64_t>(extent);
    }
    ZP_CHECK(entry.begin == end && entry.end - entry.begin == size_bytes) << entry.name;
    end = entry.end;
  }
  ZP_CHECK(end == data_bytes) << end;
  return 0;
}
