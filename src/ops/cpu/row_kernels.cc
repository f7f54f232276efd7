#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/row_kernels.cc"
#include "hwy/foreach_target.h"  // compiles this file once for each target
// The order matters: Highway's headers follow the target.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "ops/cpu/row_kernels.h"
#include "ops/element.h"

HWY_BEFORE_NAMESPACE();
namespace zp::ops::cpu {
namespace HWY_NAMESPACE {  // NOLINT(readability-identifier-naming)

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Words = hn::RebindToUnsigned<Floats>;
using Halves = hn::Rebind<uint16_t, Floats>;
using Vector = hn::Vec<Floats>;
// Room for the widest vector of any target.
using Lanes = std::array<float, 64>;
using Lanes16 = std::array<uint16_t, 64>;

HWY_INLINE Vector LoadFull(const float* from) { return hn::LoadU(Floats(), from); }

HWY_INLINE Vector LoadFull(const base::BFloat16* from) {
  const auto halves = hn::LoadU(Halves(), reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(Words(), halves)));
}

HWY_INLINE void StoreFull(Vector v, float* to) { hn::StoreU(v, Floats(), to); }

// Rounds to nearest even; a NaN stays one.
HWY_INLINE void StoreFull(Vector v, base::BFloat16* to) {
  const Words words;
  const auto bits = hn::BitCast(words, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(words, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(words, 0x7fff))));
  const auto quiet_nan = hn::Set(words, 0x7fc0);
  const auto is_nan = hn::RebindMask(words, hn::IsNaN(v));
  const auto halves = hn::TruncateTo(Halves(), hn::IfThenElse(is_nan, quiet_nan, rounded));
  hn::StoreU(halves, Halves(), reinterpret_cast<uint16_t*>(to));
}

// `count` elements; the lanes beyond hold `filler`.
template <typename T>
HWY_INLINE Vector Load(const T* from, int64_t count, float filler = 0) {
  if (count >= static_cast<int64_t>(hn::Lanes(Floats()))) {
    return LoadFull(from);
  }
  Lanes lanes;
  lanes.fill(filler);
  for (int64_t i = 0; i < count; ++i) {
    lanes[i] = static_cast<float>(from[i]);
  }
  return LoadFull(lanes.data());
}

template <typename T>
HWY_INLINE void Store(Vector v, T* to, int64_t count) {
  if (count >= static_cast<int64_t>(hn::Lanes(Floats()))) {
    StoreFull(v, to);
    return;
  }
  std::array<T, 64> lanes;
  StoreFull(v, lanes.data());
  std::copy_n(lanes.data(), count, to);
}

HWY_INLINE float Sum(Vector v) { return hn::GetLane(hn::SumOfLanes(Floats(), v)); }

HWY_INLINE int64_t LaneCount() { return static_cast<int64_t>(hn::Lanes(Floats())); }

void Convert(const float* from, int64_t count, spec::DType dtype, std::byte* to) {
  for (int64_t i = 0; i < count; i += LaneCount()) {
    const Vector v = Load(from + i, count - i);
    if (dtype == spec::DType::kF32) {
      Store(v, reinterpret_cast<float*>(to) + i, count - i);
    } else {
      Store(v, reinterpret_cast<base::BFloat16*>(to) + i, count - i);
    }
  }
}

void Widen(const std::byte* from, spec::DType dtype, int64_t count, float* to) {
  if (dtype == spec::DType::kF16) {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = LoadElement(from, dtype, i);
    }
    return;
  }
  for (int64_t i = 0; i < count; i += LaneCount()) {
    const Vector v = dtype == spec::DType::kF32
                         ? Load(reinterpret_cast<const float*>(from) + i, count - i)
                         : Load(reinterpret_cast<const base::BFloat16*>(from) + i, count - i);
    Store(v, to + i, count - i);
  }
}

void AddScaled(const float* x, float weight, int64_t count, float* y) {
  const Vector weights = hn::Set(Floats(), weight);
  for (int64_t i = 0; i < count; i += LaneCount()) {
    const Vector sum = hn::MulAdd(Load(x + i, count - i), weights, Load(y + i, count - i));
    Store(sum, y + i, count - i);
  }
}

template <typename T>
void SiluMultiplyTo(const float* gate, const float* up, int64_t count, T* y) {
  const Floats floats;
  const Vector one = hn::Set(floats, 1.0f);
  // e^88 is finite, and so small a silu is 0 in any case.
  const Vector bound = hn::Set(floats, 88.0f);
  for (int64_t i = 0; i < count; i += LaneCount()) {
    const Vector g = Load(gate + i, count - i);
    const Vector denominator = hn::Add(one, hn::Exp(floats, hn::Min(bound, hn::Neg(g))));
    Store(hn::Mul(hn::Div(g, denominator), Load(up + i, count - i)), y + i, count - i);
  }
}

void SiluMultiply(
    const float* gate, const float* up, int64_t count, spec::DType dtype, std::byte* y) {
  if (dtype == spec::DType::kF32) {
    SiluMultiplyTo(gate, up, count, reinterpret_cast<float*>(y));
  } else {
    SiluMultiplyTo(gate, up, count, reinterpret_cast<base::BFloat16*>(y));
  }
}

template <typename T>
float InverseRms(const T* x, int64_t count, float epsilon) {
  std::array<Vector, 2> sums = {hn::Zero(Floats()), hn::Zero(Floats())};
  for (int64_t i = 0; i < count; i += 2 * LaneCount()) {
    const Vector first = Load(x + i, count - i);
    const Vector second = Load(x + i + LaneCount(), std::max<int64_t>(count - i - LaneCount(), 0));
    sums[0] = hn::MulAdd(first, first, sums[0]);
    sums[1] = hn::MulAdd(second, second, sums[1]);
  }
  const float mean = Sum(hn::Add(sums[0], sums[1])) / static_cast<float>(count);
  return 1.0f / std::sqrt(mean + epsilon);
}

template <typename From, typename To>
void Scale(const From* x, float scale, const float* weight, int64_t count, To* y) {
  const Vector scales = hn::Set(Floats(), scale);
  for (int64_t i = 0; i < count; i += LaneCount()) {
    const Vector v = hn::Mul(hn::Mul(Load(x + i, count - i), scales), Load(weight + i, count - i));
    Store(v, y + i, count - i);
  }
}

void RmsNorm(const float* x,
             const float* weight,
             float epsilon,
             int64_t count,
             spec::DType dtype,
             std::byte* y) {
  const float scale = InverseRms(x, count, epsilon);
  if (dtype == spec::DType::kF32) {
    Scale(x, scale, weight, count, reinterpret_cast<float*>(y));
  } else {
    Scale(x, scale, weight, count, reinterpret_cast<base::BFloat16*>(y));
  }
}

// The head is normed and rotated in registers: it is rounded to its dtype once. `scale` and
// `norm_weight` are 1 and null without norm.
template <typename T>
void NormRotateHead(T* head, float scale, const HeadRow& row) {
  const Vector scales = hn::Set(Floats(), scale);
  const int64_t half = row.half_dim;
  for (int64_t i = 0; i < half; i += LaneCount()) {
    const int64_t count = half - i;
    Vector first = Load(head + i, count);
    Vector second = Load(head + half + i, count);
    if (row.norm_weight != nullptr) {
      first = hn::Mul(hn::Mul(first, scales), Load(row.norm_weight + i, count));
      second = hn::Mul(hn::Mul(second, scales), Load(row.norm_weight + half + i, count));
    }
    const Vector cos = Load(row.cos + i, count);
    const Vector sin = Load(row.sin + i, count);
    Store(hn::NegMulAdd(second, sin, hn::Mul(first, cos)), head + i, count);
    Store(hn::MulAdd(first, sin, hn::Mul(second, cos)), head + half + i, count);
  }
}

template <typename T>
void NormRotateHeads(T* heads, const HeadRow& row) {
  for (int64_t h = 0; h < row.head_count; ++h) {
    T* head = heads + h * row.head_dim;
    const float scale =
        row.norm_weight != nullptr ? InverseRms(head, row.head_dim, row.epsilon) : 1.0f;
    NormRotateHead(head, scale, row);
  }
}

void NormRotate(const HeadRow& row) {
  if (row.dtype == spec::DType::kF32) {
    NormRotateHeads(reinterpret_cast<float*>(row.heads), row);
  } else {
    NormRotateHeads(reinterpret_cast<base::BFloat16*>(row.heads), row);
  }
}

// NaN if any value is NaN.
float Largest(const float* x, int64_t count) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const Floats floats;
  Vector largest = hn::Set(floats, kLowest);
  Vector nan_lanes = hn::Zero(floats);
  for (int64_t i = 0; i < count; i += LaneCount()) {
    const Vector v = Load(x + i, count - i, kLowest);
    largest = hn::Max(largest, v);
    nan_lanes = hn::Or(nan_lanes, hn::VecFromMask(floats, hn::IsNaN(v)));
  }
  const bool has_nan = !hn::AllFalse(floats, hn::MaskFromVec(nan_lanes));
  return has_nan ? std::numeric_limits<float>::quiet_NaN()
                 : hn::GetLane(hn::MaxOfLanes(floats, largest));
}

ExpSum ExpSumOf(const float* x, int64_t count) {
  // f32 lanes are emptied into a double this often: over a vocabulary an f32 sum would lose digits.
  constexpr int64_t kBlock = 1024;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  ExpSum result{.largest = Largest(x, count)};
  if (!std::isfinite(result.largest)) {
    result.sum = std::isnan(result.largest) ? std::numeric_limits<double>::quiet_NaN() : 1.0;
    return result;
  }
  const Floats floats;
  const Vector shift = hn::Set(floats, result.largest);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    Vector sum = hn::Zero(floats);
    for (int64_t i = begin; i < end; i += LaneCount()) {
      sum = hn::Add(sum, hn::Exp(floats, hn::Sub(Load(x + i, end - i, kLowest), shift)));
    }
    result.sum += Sum(sum);
  }
  return result;
}

int64_t IndexAbove(const float* x, int64_t begin, int64_t count, float bound) {
  const Floats floats;
  const Vector bounds = hn::Set(floats, bound);
  int64_t i = begin;
  while (i + LaneCount() <= count &&
         hn::AllTrue(floats, hn::Le(hn::LoadU(floats, x + i), bounds))) {
    i += LaneCount();
  }
  while (i < count && x[i] <= bound) {
    ++i;
  }
  return i;
}

template <typename T>
float DotOf(const float* x, const T* y, int64_t count) {
  std::array<Vector, 2> sums = {hn::Zero(Floats()), hn::Zero(Floats())};
  for (int64_t i = 0; i < count; i += 2 * LaneCount()) {
    const int64_t left = std::max<int64_t>(count - i - LaneCount(), 0);
    sums[0] = hn::MulAdd(Load(x + i, count - i), Load(y + i, count - i), sums[0]);
    sums[1] = hn::MulAdd(Load(x + i + LaneCount(), left), Load(y + i + LaneCount(), left), sums[1]);
  }
  return Sum(hn::Add(sums[0], sums[1]));
}

float Dot(const float* x, const std::byte* y, spec::DType dtype, int64_t count) {
  switch (dtype) {
    case spec::DType::kF32:
      return DotOf(x, reinterpret_cast<const float*>(y), count);
    case spec::DType::kBf16:
      return DotOf(x, reinterpret_cast<const base::BFloat16*>(y), count);
    case spec::DType::kF16:
      break;
  }
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += x[i] * LoadElement(y, dtype, i);
  }
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace zp::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zp::ops::cpu {

HWY_EXPORT(Convert);
HWY_EXPORT(Widen);
HWY_EXPORT(AddScaled);
HWY_EXPORT(SiluMultiply);
HWY_EXPORT(RmsNorm);
HWY_EXPORT(NormRotate);
HWY_EXPORT(ExpSumOf);
HWY_EXPORT(IndexAbove);
HWY_EXPORT(Dot);

void ConvertRow(const float* from, int64_t count, spec::DType dtype, std::byte* to) {
  HWY_DYNAMIC_DISPATCH(Convert)(from, count, dtype, to);
}

void WidenRow(const std::byte* from, spec::DType dtype, int64_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(Widen)(from, dtype, count, to);
}

void AddScaledRow(const float* x, float weight, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(AddScaled)(x, weight, count, y);
}

void SiluMultiplyRow(
    const float* gate, const float* up, int64_t count, spec::DType dtype, std::byte* y) {
  HWY_DYNAMIC_DISPATCH(SiluMultiply)(gate, up, count, dtype, y);
}

void RmsNormRow(const float* x,
                const float* weight,
                float epsilon,
                int64_t count,
                spec::DType dtype,
                std::byte* y) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, epsilon, count, dtype, y);
}

void NormRotateRow(const HeadRow& row) { HWY_DYNAMIC_DISPATCH(NormRotate)(row); }

ExpSum SumOfExp(const float* x, int64_t count) { return HWY_DYNAMIC_DISPATCH(ExpSumOf)(x, count); }

int64_t FindAbove(const float* x, int64_t begin, int64_t count, float bound) {
  return HWY_DYNAMIC_DISPATCH(IndexAbove)(x, begin, count, bound);
}

float DotRow(const float* x, const std::byte* y, spec::DType dtype, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(Dot)(x, y, dtype, count);
}

}  // namespace zp::ops::cpu
#endif  // HWY_ONCE
