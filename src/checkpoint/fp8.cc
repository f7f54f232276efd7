#include "checkpoint/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

constexpr int64_t kMaxBlockExtent = 1 << 16;  // published models: 128

const std::array<float, 256>& FloatByBits() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> floats = {};
    for (size_t bits = 0; bits < floats.size(); ++bits) {
      floats[bits] = Fp8ToFloat(static_cast<uint8_t>(bits));
    }
    return floats;
  }();
  return table;
}

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
                      quantization.Integers("weight_block_size", 1, kMaxBlockExtent));
  if (extents.size() != 2) {
    return quantization.Wrong(
        "weight_block_size",
        fmt::format("has {} numbers, but must have 2: rows and columns of a block",
                    extents.size()));
  }
  return std::optional(Fp8Blocks{extents[0], extents[1]});
}

float Fp8ToFloat(uint8_t bits) {
  constexpr uint8_t kMagnitudeMask = 0x7f;
  const uint32_t magnitude = bits & kMagnitudeMask;
  if (magnitude == kMagnitudeMask) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  // Exponent and mantissa at their places in an f32, whose bias is larger by 120; the product also
  // makes denormals normal.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return (bits & 0x80) != 0 ? -value : value;
}

void Widen(const Fp8Weight& weight, std::span<float> values) {
  ZP_CHECK(static_cast<int64_t>(values.size()) == weight.rows * weight.cols) << values.size();
  const std::array<float, 256>& float_by_bits = FloatByBits();
  const int64_t scale_cols = (weight.cols + weight.blocks.cols - 1) / weight.blocks.cols;
  for (int64_t row = 0; row < weight.rows; ++row) {
    const auto* numbers =
        reinterpret_cast<const uint8_t*>(weight.numbers.data()) + row * weight.cols;
    float* const row_values = values.data() + row * weight.cols;
    for (int64_t begin = 0; begin < weight.cols; begin += weight.blocks.cols) {
      const float scale = ScaleAt(
          weight.scales, row / weight.blocks.rows * scale_cols + begin / weight.blocks.cols);
      const int64_t end = std::min(begin + weight.blocks.cols, weight.cols);
      for (int64_t col = begin; col < end; ++col) {
        row_values[col] = float_by_bits[numbers[col]] * scale;
      }
    }
  }
}

}  // namespace zp::checkpoint
