#include "model/finite.h"

#include <algorithm>
#include <cmath>

#include "base/float8.h"

namespace zp::model {
namespace {

constexpr int64_t kBlockElements = 4096;

// A number is not finite if all its exponent bits are set.
template <typename Word, Word kExponentMask>
int64_t FirstWithFullExponent(std::span<const std::byte> bytes) {
  const auto* words = reinterpret_cast<const Word*>(bytes.data());
  const auto count = static_cast<int64_t>(bytes.size() / sizeof(Word));
  for (int64_t begin = 0; begin < count; begin += kBlockElements) {
    const int64_t end = std::min(begin + kBlockElements, count);
    int found = 0;
    for (int64_t index = begin; index < end;
         ++index) {  // without a branch: the compiler vectorises it
      found |= static_cast<int>((words[index] & kExponentMask) == kExponentMask);
    }
    if (found != 0) {
      return std::find_if(words + begin,
                          words + end,
                          [](Word word) { return (word & kExponentMask) == kExponentMask; }) -
             words;
    }
  }
  return -1;
}

}  // namespace

int64_t FirstNonFinite(std::span<const std::byte> bytes, spec::DType dtype) {
  switch (dtype) {
    case spec::DType::kBf16:
      return FirstWithFullExponent<uint16_t, 0x7f80>(bytes);
    case spec::DType::kF16:
      return FirstWithFullExponent<uint16_t, 0x7c00>(bytes);
    case spec::DType::kF32:
      return FirstWithFullExponent<uint32_t, 0x7f800000u>(bytes);
  }
  return -1;
}

int64_t FirstNonFinite(const ops::Fp8Matrix& matrix) {
  for (int64_t begin = 0; begin < matrix.rows * matrix.cols;) {
    const int64_t row = begin / matrix.cols;
    const int64_t col = begin % matrix.cols;
    const int64_t block_end = (col / matrix.blocks.cols + 1) * matrix.blocks.cols;
    const int64_t end = begin - col + std::min(block_end, matrix.cols);
    const float scale = matrix.scales[matrix.blocks.ScaleIndex(row, col, matrix.cols)];
    for (int64_t index = begin; index < end; ++index) {
      if (!std::isfinite(base::kFp8Values[static_cast<uint8_t>(matrix.numbers[index])] * scale)) {
        return index;
      }
    }
    begin = end;
  }
  return -1;
}

}  // namespace zp::model
