#include "ops/cpu/fp8_panels.h"

#include <algorithm>

#include "base/bfloat16.h"
#include "base/check.h"
#include "memory/buffer.h"
#include "ops/cpu/fp8_widen.h"
#include "ops/element.h"

namespace zp::ops::cpu {
namespace {

constexpr int kByteBits = 8;

// Bytes as numbers that every packed form holds exactly.
memory::Buffer AsNumbers(std::span<const std::byte> bytes) {
  memory::Buffer numbers(bytes.size() * sizeof(base::BFloat16), "packing");
  auto* to = numbers.as<base::BFloat16>();
  for (size_t i = 0; i < bytes.size(); ++i) {
    to[i] = base::BFloat16(static_cast<float>(static_cast<uint8_t>(bytes[i])));
  }
  return numbers;
}

ConstMatrix MatrixOf(const memory::Buffer& numbers, int64_t rows, int64_t cols) {
  return {numbers.data(), spec::DType::kBf16, rows, cols, cols};
}

// For each number of a half that has `rows` rows: 1 + the index of its scale, counted from `first`.
std::vector<uint32_t> ScaleNumbers(int64_t rows,
                                   int64_t cols,
                                   int64_t first,
                                   const spec::Fp8Blocks& blocks) {
  std::vector<uint32_t> numbers;
  numbers.reserve(rows * cols);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      numbers.push_back(static_cast<uint32_t>(1 + first + blocks.ScaleIndex(row, col, cols)));
    }
  }
  return numbers;
}

std::vector<std::byte> BytesAt(std::span<const uint32_t> numbers, int shift) {
  std::vector<std::byte> bytes;
  bytes.reserve(numbers.size());
  for (const uint32_t number : numbers) {
    bytes.push_back(static_cast<std::byte>(number >> shift));
  }
  return bytes;
}

}  // namespace

Fp8Panels::Fp8Panels(const OneDnnProduct& product) : product_(product) {}

size_t Fp8Panels::packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const {
  return product_.packed_bytes(out_dim, in_dim, gated) / spec::SizeOf(product_.dtype());
}

void Fp8Panels::Pack(const Fp8Matrix& weight,
                     const Fp8Matrix* up,
                     std::span<std::byte> packed) const {
  const auto size = static_cast<size_t>(weight.rows * weight.cols);
  PackBytes({weight.numbers, size},
            up != nullptr ? std::span(up->numbers, size) : std::span<const std::byte>(),
            weight.cols,
            packed);
}

void Fp8Panels::PackBytes(std::span<const std::byte> weight,
                          std::span<const std::byte> up,
                          int64_t in_dim,
                          std::span<std::byte> packed) const {
  const bool gated = !up.empty();
  const auto out_dim = static_cast<int64_t>(weight.size()) / in_dim;
  ZP_CHECK(packed.size() == packed_bytes(out_dim, in_dim, gated)) << packed.size();
  const memory::Buffer weight_numbers = AsNumbers(weight);
  const memory::Buffer up_numbers = gated ? AsNumbers(up) : memory::Buffer();
  const ConstMatrix up_matrix = MatrixOf(up_numbers, out_dim, in_dim);
  const spec::DType dtype = product_.dtype();
  const memory::Buffer wide(packed.size() * spec::SizeOf(dtype), "packing");
  product_.Pack(
      MatrixOf(weight_numbers, out_dim, in_dim), gated ? &up_matrix : nullptr, wide.bytes());
  for (size_t i = 0; i < packed.size(); ++i) {
    packed[i] = static_cast<std::byte>(
        static_cast<uint8_t>(LoadElement(wide.data(), dtype, static_cast<int64_t>(i))));
  }
}

const WidenPlan& Fp8Panels::PlanFor(int64_t out_dim,
                                    int64_t in_dim,
                                    bool gated,
                                    const spec::Fp8Blocks& blocks) const {
  const std::lock_guard lock(mutex_);
  const auto [entry, is_new] =
      plans_.try_emplace({out_dim, in_dim, gated, blocks.rows, blocks.cols});
  if (is_new) {
    entry->second = MakePlan(out_dim, in_dim, gated, blocks);
  }
  return entry->second;
}

WidenPlan Fp8Panels::MakePlan(int64_t out_dim,
                              int64_t in_dim,
                              bool gated,
                              const spec::Fp8Blocks& blocks) const {
  const int64_t half_scales = blocks.ScaleCount(out_dim, in_dim);
  const std::vector<uint32_t> weight = ScaleNumbers(out_dim, in_dim, 0, blocks);
  const std::vector<uint32_t> up =
      gated ? ScaleNumbers(out_dim, in_dim, half_scales, blocks) : std::vector<uint32_t>();
  const int64_t largest = half_scales * (gated ? 2 : 1);
  // 1 + the scale's index of each packed number, 0 for padding: byte by byte.
  std::vector<uint32_t> packed(packed_bytes(out_dim, in_dim, gated));
  std::vector<std::byte> packed_digits(packed.size());
  for (int shift = 0; largest >> shift != 0; shift += kByteBits) {
    PackBytes(BytesAt(weight, shift), BytesAt(up, shift), in_dim, packed_digits);
    for (size_t i = 0; i < packed.size(); ++i) {
      packed[i] |= static_cast<uint32_t>(packed_digits[i]) << shift;
    }
  }
  WidenPlan plan;
  const int64_t panel_count = product_.panel_count(out_dim, gated);
  for (int64_t panel = 0; panel < panel_count; ++panel) {
    plan.first_numbers.push_back(product_.PanelBegin(panel, in_dim));
  }
  plan.first_numbers.push_back(packed.size());
  for (int64_t panel = 0; panel < panel_count; ++panel) {
    plan.first_runs.push_back(plan.runs.size());
    auto begin = packed.begin() + static_cast<int64_t>(plan.first_numbers[panel]);
    const auto end = packed.begin() + static_cast<int64_t>(plan.first_numbers[panel + 1]);
    while (begin != end) {
      const auto next = std::find_if(begin, end, [&](uint32_t other) { return other != *begin; });
      plan.runs.push_back({static_cast<uint32_t>(next - begin), static_cast<int32_t>(*begin) - 1});
      begin = next;
    }
  }
  plan.first_runs.push_back(plan.runs.size());
  return plan;
}

}  // namespace zp::ops::cpu
