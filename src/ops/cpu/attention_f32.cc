// Attention in f32 on any CPU (Highway picks the widest vectors). Layout of one head in a block:
// K [head_dim][16 keys], then V [16 keys][head_dim rounded up to 16]. bf16 activations are widened
// when they come in and rounded when they leave.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/bfloat16.h"
#include "ops/cpu/attention_tile.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention_f32.cc"
// clang-format off: foreach_target.h must come first.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace zp::ops::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::CappedTag<float, kKvBlockTokens>;
using Vector = hn::Vec<Tag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
constexpr int kVectors = kKvBlockTokens / kLanes;  // to a run of 16 columns
// Rows of a micro kernel: with 32 registers all of a group, with 16 half of it or less.
constexpr int kKernelRows = std::min(kGroupRows, kLanes / 2);
constexpr int kQueryRowFloats = kMaxHeadDim;

// 2^x within 2e-7 of it, relative; exactly 1 at 0; 0 below -126; NaN at NaN. The polynomial is the
// best of degree 5 on [0, 1) with p(0) = 1.
HWY_INLINE Vector Exp2(Vector x) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const Vector whole = hn::Floor(x);
  const Vector fraction = hn::Sub(x, whole);
  Vector power = hn::Set(d, 1.86713005e-3f);
  power = hn::MulAdd(power, fraction, hn::Set(d, 9.01703071e-3f));
  power = hn::MulAdd(power, fraction, hn::Set(d, 5.57999127e-2f));
  power = hn::MulAdd(power, fraction, hn::Set(d, 2.40164444e-1f));
  power = hn::MulAdd(power, fraction, hn::Set(d, 6.93151295e-1f));
  power = hn::MulAdd(power, fraction, hn::Set(d, 1.0f));
  const auto exponent = hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127));
  const Vector result = hn::Mul(power, hn::BitCast(d, hn::ShiftLeft<23>(exponent)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), result);
}

// sums [kRows][16] += left [kRows][term_count] . right [term_count][16]; rows of `sums` are
// kSumStride apart, those of `left` kLeftStride.
template <int kRows, int kLeftStride, int kSumStride>
HWY_INLINE void AddProducts(
    const float* left, const float* right, int right_stride, int term_count, float* sums) {
  const Tag d;
  Vector rows[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      rows[row][v] = hn::Load(d, sums + row * kSumStride + v * kLanes);
    }
  }
  for (int term = 0; term < term_count; ++term) {
    Vector columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = hn::Load(d, right + v * kLanes);
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Vector factor = hn::Set(d, left[row * kLeftStride + term]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        rows[row][v] = hn::MulAdd(factor, columns[v], rows[row][v]);
      }
    }
    right += right_stride;
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(rows[row][v], d, sums + row * kSumStride + v * kLanes);
    }
  }
}

// scores [row_count][kTileKeys]: 16 columns of q . k
void Scores(const float* query, int row_count, const float* keys, int head_dim, float* scores) {
  int row = 0;
  const auto run = [&](auto rows) HWY_ATTR {
    for (; row + rows <= row_count; row += rows) {
      float* target = scores + row * kTileKeys;
      for (int i = 0; i < rows; ++i) {
        std::fill_n(target + i * kTileKeys, kKvBlockTokens, 0.0f);
      }
      AddProducts<rows, kQueryRowFloats, kTileKeys>(
          query + row * kQueryRowFloats, keys, kKvBlockTokens, head_dim, target);
    }
  };
  run(std::integral_constant<int, kKernelRows>());
  run(std::integral_constant<int, 1>());
}

// sums [row_count][16] += weights . 16 columns of V
void AddValues(
    const float* weights, int row_count, const float* values, int value_stride, float* sums) {
  int row = 0;
  const auto run = [&](auto rows) HWY_ATTR {
    for (; row + rows <= row_count; row += rows) {
      AddProducts<rows, kTileKeys, kVectorDims>(weights + row * kTileKeys,
                                                values,
                                                value_stride,
                                                kKvBlockTokens,
                                                sums + row * kVectorDims);
    }
  };
  run(std::integral_constant<int, kKernelRows>());
  run(std::integral_constant<int, 1>());
}

// weights [key_count] = 2^(weights * scale - offset), 0 from `visible` on; returns their sum.
float Weigh(float* weights, int visible, int key_count, float scale, float offset) {
  const Tag d;
  Vector sum = hn::Zero(d);
  for (int i = 0; i < key_count; i += kLanes) {
    const auto seen = hn::FirstN(d, std::clamp(visible - i, 0, kLanes));
    const Vector x = hn::MulSub(hn::Load(d, weights + i), hn::Set(d, scale), hn::Set(d, offset));
    const Vector weight = hn::IfThenElseZero(seen, Exp2(x));
    sum = hn::Add(sum, weight);
    hn::Store(weight, d, weights + i);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void Scale(float* values, int count, float factor) {
  const Tag d;
  for (int i = 0; i < count; i += kLanes) {
    hn::Store(hn::Mul(hn::Load(d, values + i), hn::Set(d, factor)), d, values + i);
  }
}

float Exp2Of(float x) { return hn::GetLane(Exp2(hn::Set(Tag(), x))); }

}  // namespace zp::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zp::ops::cpu {
namespace {

HWY_EXPORT(Scores);
HWY_EXPORT(AddValues);
HWY_EXPORT(Weigh);
HWY_EXPORT(Scale);
HWY_EXPORT(Exp2Of);

int PaddedDim(int head_dim) { return (head_dim + kVectorDims - 1) / kVectorDims * kVectorDims; }

template <typename Element>
class F32Kernel final : public TileKernel {
 public:
  size_t head_bytes(int head_dim) const override {
    return size_t{kKvBlockTokens} * (head_dim + PaddedDim(head_dim)) * sizeof(float);
  }

  void WriteRun(const KvRun& run,
                size_t column_bytes,
                int head_dim,
                std::byte* head) const override {
    for (int i = 0; i < run.count; ++i) {
      WriteSlot(reinterpret_cast<const Element*>(run.k[i] + column_bytes),
                reinterpret_cast<const Element*>(run.v[i] + column_bytes),
                head_dim,
                run.slot_begin + i,
                reinterpret_cast<float*>(head));
    }
  }

  void Begin(const std::byte* const* q, int head_dim, RowGroup& group) const override {
    auto* query = reinterpret_cast<float*>(group.query);
    for (int row = 0; row < group.row_count; ++row) {
      std::transform(reinterpret_cast<const Element*>(q[row]),
                     reinterpret_cast<const Element*>(q[row]) + head_dim,
                     query + row * kMaxHeadDim,
                     [](Element element) { return static_cast<float>(element); });
    }
    std::fill_n(group.values, kGroupRows * PaddedDim(head_dim), 0.0f);
  }

  void AddTile(const KeyTile& tile, int head_dim, float scale, RowGroup& group) const override {
    alignas(64) float weights[kGroupRows][kTileKeys];
    const int visible = *std::max_element(group.visible, group.visible + group.row_count);
    const int block_count = (visible + kKvBlockTokens - 1) / kKvBlockTokens;
    const int padded_dim = PaddedDim(head_dim);
    for (int block = 0; block < block_count; ++block) {
      HWY_DYNAMIC_DISPATCH(Scores)
      (reinterpret_cast<const float*>(group.query),
       group.row_count,
       reinterpret_cast<const float*>(tile.heads[block]),
       head_dim,
       &weights[0][block * kKvBlockTokens]);
    }
    for (int row = 0; row < group.row_count; ++row) {
      UpdateRow(weights[row], block_count * kKvBlockTokens, row, padded_dim, scale, group);
    }
    for (int block = 0; block < block_count; ++block) {
      const float* values =
          reinterpret_cast<const float*>(tile.heads[block]) + kKvBlockTokens * head_dim;
      for (int i = 0; i < padded_dim; i += kVectorDims) {
        HWY_DYNAMIC_DISPATCH(AddValues)
        (&weights[0][block * kKvBlockTokens],
         group.row_count,
         values + i,
         padded_dim,
         group.values + i * kGroupRows);
      }
    }
  }

  void Finish(const RowGroup& group, int head_dim, std::byte* const* out) const override {
    for (int row = 0; row < group.row_count; ++row) {
      auto* elements = reinterpret_cast<Element*>(out[row]);
      for (int i = 0; i < head_dim; ++i) {
        // + 0: a sum that underflowed to -0 and one that zeros were added to afterwards look alike.
        elements[i] = static_cast<Element>(*ValueAt(group, row, i) / group.sum[row] + 0.0f);
      }
    }
  }

 private:
  // What is not finite becomes a K of NaN and a V of 0: scores are masked by choice, but a weight
  // of 0 times a V of NaN would reach rows that do not see it.
  static void WriteSlot(const Element* k, const Element* v, int head_dim, int slot, float* head) {
    float* keys = head + slot;
    float* values = head + kKvBlockTokens * head_dim + slot * PaddedDim(head_dim);
    bool finite = true;
    for (int i = 0; i < head_dim; ++i) {
      keys[i * kKvBlockTokens] = static_cast<float>(k[i]);
      values[i] = static_cast<float>(v[i]);
      finite &= std::isfinite(keys[i * kKvBlockTokens]) && std::isfinite(values[i]);
    }
    for (int i = 0; !finite && i < head_dim; ++i) {
      keys[i * kKvBlockTokens] = std::numeric_limits<float>::quiet_NaN();
      values[i] = 0;
    }
  }

  static float* ValueAt(const RowGroup& group, int row, int dim) {
    return group.values + (dim / kVectorDims * kGroupRows + row) * kVectorDims + dim % kVectorDims;
  }

  // Turns a row's scores into weights and brings its sums to the new maximum.
  static void UpdateRow(
      float* weights, int key_count, int row, int padded_dim, float scale, RowGroup& group) {
    const int visible = group.visible[row];
    float max = group.max[row];
    for (int key = 0; key < visible; ++key) {
      max = std::max(max, weights[key]);
    }
    const float decay = HWY_DYNAMIC_DISPATCH(Exp2Of)(group.max[row] * scale - max * scale);
    const float sum = HWY_DYNAMIC_DISPATCH(Weigh)(weights, visible, key_count, scale, max * scale);
    group.sum[row] = group.sum[row] * decay + sum;
    group.max[row] = max;
    for (int i = 0; i < padded_dim; i += kVectorDims) {
      HWY_DYNAMIC_DISPATCH(Scale)(ValueAt(group, row, i), kVectorDims, decay);
    }
  }
};

}  // namespace

const TileKernel& PortableKernel(spec::DType activation_dtype) {
  static const F32Kernel<float> f32_kernel;
  static const F32Kernel<base::BFloat16> bf16_kernel;
  if (activation_dtype == spec::DType::kBf16) {
    return bf16_kernel;
  }
  return f32_kernel;
}

}  // namespace zp::ops::cpu
#endif  // HWY_ONCE
