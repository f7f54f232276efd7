// The first bytes of a safetensors file; the tensors follow, one after the other.
//
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "spec/dtype.h"

namespace zp::checkpoint {

struct TensorOutline {
  std::string name;
  spec::DType dtype = spec::DType::kF32;
  std::vector<int64_t> shape;
  bool is_fp8 = false;  // 8-bit numbers, F8_E4M3, in place of `dtype`
};

size_t ElementBytes(const TensorOutline& tensor);

uint64_t BytesOf(const TensorOutline& tensor);

// The header with its length before it, padded to a multiple of 8 bytes, of a file that holds
// `tensors` in this order. Wider numbers must come first, so that each tensor lies aligned.
std::string SafetensorsHeader(std::span<const TensorOutline> tensors);

}  // namespace zp::checkpoint
