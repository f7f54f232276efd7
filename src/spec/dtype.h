// Number formats of weights and activations.
#pragma once

#include <cstddef>
#include <string_view>

namespace zp::spec {

enum class DType { kBf16, kF16, kF32 };

constexpr size_t SizeOf(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

constexpr std::string_view NameOf(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kF32:
      return "f32";
  }
  return "?";
}

}  // namespace zp::spec
