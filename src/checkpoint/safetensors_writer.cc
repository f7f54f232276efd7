#include "checkpoint/safetensors_writer.h"

#include <string_view>

#include "base/check.h"
#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"

namespace zp::checkpoint {
namespace {

namespace json = boost::json;

std::string_view SafetensorsDType(spec::DType dtype) {
  return dtype == spec::DType::kBf16 ? "BF16" : dtype == spec::DType::kF16 ? "F16" : "F32";
}

}  // namespace

uint64_t BytesOf(const TensorOutline& tensor) {
  uint64_t size_bytes = spec::SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) {
    size_bytes *= extent;
  }
  return size_bytes;
}

std::string SafetensorsHeader(std::span<const TensorOutline> tensors) {
  json::object header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const TensorOutline& tensor : tensors) {
    ZP_CHECK(offset % spec::SizeOf(tensor.dtype) == 0) << tensor.name << " at " << offset;
    const uint64_t end = offset + BytesOf(tensor);
    const std::string_view dtype = SafetensorsDType(tensor.dtype);
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
