#include "checkpoint/fp8.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/float8.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

float ScaleAt(const TensorView& scales, int64_t index) {
  if (scales.dtype == spec::DType::kF32) {
    float scale = 0;
    std::memcpy(&scale, scales.bytes.data() + index * 4, 4);
    return scale;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, scales.bytes.data() + index * 2, 2);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

absl::Status CheckOption(const JsonFile& quantization,
                         std::string_view field,
                         std::optional<std::string> fallback,
                         std::string_view supported) {
  ZP_ASSIGN_OR_RETURN(const std::string value, quantization.String(field, std::move(fallback)));
  if (value != supported) {
    return quantization.Unsupported(
        field, fmt::format("is '{}', but only '{}' is supported", value, supported));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::optional<Fp8Blocks>> ReadFp8Blocks(const JsonFile& config) {
  if (!config.Has("quantization_config")) {
    return std::optional<Fp8Blocks>();
  }
  ZP_ASSIGN_OR_RETURN(const JsonFile quantization, config.Object("quantization_config"));
  ZP_RETURN_IF_ERROR(CheckOption(quantization, "quant_method", "none", "fp8"));
  ZP_RETURN_IF_ERROR(CheckOption(quantization, "fmt", "e4m3", "e4m3"));
  // Static ones come with tensors of activation scales.
  ZP_RETURN_IF_ERROR(CheckOption(quantization, "activation_scheme", "dynamic", "dynamic"));
  ZP_ASSIGN_OR_RETURN(const std::vector<int64_t> extents,
                      quantization.Integers("weight_block_size", 1, kMaxFp8BlockExtent));
  if (extents.size() != 2) {
    return quantization.Wrong(
        "weight_block_size",
        fmt::format("has {} numbers, but must have 2: rows and columns of a block",
                    extents.size()));
  }
  return std::optional(Fp8Blocks{extents[0], extents[1]});
}

void Widen(const Fp8Weight& weight, std::span<float> values) {
  ZP_CHECK(static_cast<int64_t>(values.size()) == weight.rows * weight.cols) << values.size();
  for (int64_t row = 0; row < weight.rows; ++row) {
    const auto* numbers =
        reinterpret_cast<const uint8_t*>(weight.numbers.data()) + row * weight.cols;
    float* const row_values = values.data() + row * weight.cols;
    for (int64_t begin = 0; begin < weight.cols; begin += weight.blocks.cols) {
      const float scale = ScaleAt(weight.scales, weight.blocks.ScaleIndex(row, begin, weight.cols));
      const int64_t end = std::min(begin + weight.blocks.cols, weight.cols);
      for (int64_t col = begin; col < end; ++col) {
        row_values[col] = base::kFp8Values[numbers[col]] * scale;
      }
    }
  }
}

Fp8Copy CopyOf(const Fp8Weight& weight) {
  Fp8Copy copy;
  copy.numbers.assign(weight.numbers.begin(), weight.numbers.end());
  const int64_t scale_count = weight.blocks.ScaleCount(weight.rows, weight.cols);
  for (int64_t index = 0; index < scale_count; ++index) {
    copy.scales.push_back(ScaleAt(weight.scales, index));
  }
  return copy;
}

}  // namespace zp::checkpoint
