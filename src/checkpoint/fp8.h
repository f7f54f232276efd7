// Weights of 8-bit floating-point numbers (F8_E4M3) with a scale for each block of them, as Hugging
// Face's "quant_method": "fp8" keeps them: weight[r][c] = number[r][c] * scale[r / R][c / C] for
// blocks of R rows and C columns; the scales of X.weight are the tensor X.weight_scale_inv.
//
// A Checkpoint gives such a weight out widened to f32, which holds the product of the number and a
// bf16 scale exactly; that of an expert also as it is, for packing.
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/json_file.h"
#include "spec/dtype.h"

namespace zp::checkpoint {

using spec::Fp8Blocks;

constexpr int64_t kMaxFp8BlockExtent = 1 << 16;  // published models: 128

// What the quantization_config of a config.json says; nothing where there is none.
// Errors: Unimplemented for any quantization but this, InvalidArgument for blocks that are none.
absl::StatusOr<std::optional<Fp8Blocks>> ReadFp8Blocks(const JsonFile& config);

struct Fp8Weight {
  std::span<const std::byte> numbers;  // [rows, cols]
  int64_t rows = 0;
  int64_t cols = 0;
  TensorView scales;  // bf16 or f32, [ceil(rows / blocks.rows), ceil(cols / blocks.cols)]
  Fp8Blocks blocks;
};

// REQUIRES: values.size() == rows * cols.
void Widen(const Fp8Weight& weight, std::span<float> values);

// As it is: copies of its numbers and of its scales, these as f32.
Fp8Copy CopyOf(const Fp8Weight& weight);

}  // namespace zp::checkpoint
