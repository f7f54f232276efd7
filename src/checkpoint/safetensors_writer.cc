#include "checkpoint/safetensors_writer.h"

#include <string_view>

#include "base/check.h"
#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"

namespace zp::checkpoint {
namespace {

namespace json = boost::json;

std::string_view SafetensorsDType(const TensorOutline& tensor) {
  if (tensor.is_fp8) {
    return "F8_E4M3";
  }
  return tensor.dtype == spec::DType::kBf16  ? "BF16"
         : tensor.dtype == spec::DType::kF16 ? "F16"
                                             : "F32";
}

}  // namespace

size_t ElementBytes(const TensorOutline& tensor) {
  return tensor.is_fp8 ? 1 : spec::SizeOf(tensor.dtype);
}

uint64_t BytesOf(const TensorOutline& tensor) {
  uint64_t size_bytes = ElementBytes(tensor);
  for (const int64_t extent : tensor.shape) {
    size_bytes *= extent;
  }
  return size_bytes;
}

std::string SafetensorsHeader(std::span<const TensorOutline> tensors) {
  json::object header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const TensorOutline& tensor : tensors) {
    ZP_CHECK(offset % ElementBytes(tensor) == 0) << tensor.name << " at " << offset;
    const uint64_t end = offset + BytesOf(tensor);
    const std::string_view dtype = SafetensorsDType(tensor);
    header[tensor.name] = {{"dtype", json::string_view(dtype.data(), dtype.size())},
                           {"shape", json::array(tensor.shape.begin(), tensor.shape.end())},
                           {"data_offsets", json::array{offset, end}}};
    offset = end;
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t text_bytes = text.size();
  return std::string(reinterpret_cast<const char*>(&text_bytes), sizeof(text_bytes)) + text;
}

}  // namespace zp::checkpoint
