#include "ops/reference/reference_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "fmt/format.h"
#include "ops/element.h"
#include "ops/reference/reference_attention.h"

namespace zp::ops::reference {
namespace {

constexpr size_t kBlobAlignment = 4096;
constexpr size_t kPartAlignment = 64;

void PackRows(const ConstMatrix& weight, float* packed) {
  for (int64_t row = 0; row < weight.rows; ++row) {
    for (int64_t col = 0; col < weight.cols; ++col) {
      packed[row * weight.cols + col] = LoadElement(weight, row, col);
    }
  }
}

float Dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

// y = x W^T of one row; weight [out_dim, in_dim] row-major.
std::vector<float> Multiply(const float* x,
                            const std::byte* weight,
                            int64_t out_dim,
                            int64_t in_dim) {
  std::vector<float> y(out_dim);
  for (int64_t out = 0; out < out_dim; ++out) {
    y[out] = Dot(x, reinterpret_cast<const float*>(weight) + out * in_dim, in_dim);
  }
  return y;
}

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// A part of an expert in 8 bits as f32.
std::vector<float> WidenPart(const ExpertLayout& layout,
                             const std::byte* blob,
                             size_t part_offset,
                             int64_t first_scale,
                             int64_t rows,
                             int64_t cols) {
  const auto* scales = reinterpret_cast<const float*>(blob + layout.scales_offset) + first_scale;
  const Fp8Matrix part = {blob + part_offset, scales, rows, cols, *layout.fp8_blocks};
  std::vector<float> numbers(rows * cols);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      numbers[row * cols + col] = LoadElement(part, row, col);
    }
  }
  return numbers;
}

// An expert in 8 bits as f32: gate, up, down.
std::vector<float> WidenExpert(const ExpertLayout& layout, const std::byte* blob) {
  const auto [h, i] = std::pair(layout.model_dim, layout.expert_dim);
  const int64_t gate_scales = layout.gate_scale_count();
  std::vector<float> expert;
  for (const std::vector<float>& part :
       {WidenPart(layout, blob, layout.gate_up_offset, 0, i, h),
        WidenPart(layout, blob, layout.gate_up_offset + i * h, gate_scales, i, h),
        WidenPart(layout, blob, layout.down_offset, 2 * gate_scales, h, i)}) {
    expert.insert(expert.end(), part.begin(), part.end());
  }
  return expert;
}

std::vector<float> RunExpert(const float* x, const ExpertLayout& layout, const std::byte* blob) {
  if (layout.fp8_blocks.has_value()) {
    const std::vector<float> expert = WidenExpert(layout, blob);
    const ExpertLayout wide = {
        .model_dim = layout.model_dim,
        .expert_dim = layout.expert_dim,
        .down_offset = 2 * layout.model_dim * layout.expert_dim * sizeof(float)};
    return RunExpert(x, wide, reinterpret_cast<const std::byte*>(expert.data()));
  }
  const std::vector<float> gate_up =
      Multiply(x, blob + layout.gate_up_offset, 2 * layout.expert_dim, layout.model_dim);
  std::vector<float> inner(layout.expert_dim);
  for (int64_t i = 0; i < layout.expert_dim; ++i) {
    const float gate = gate_up[i];
    inner[i] = gate / (1.0f + std::exp(-gate)) * gate_up[layout.expert_dim + i];
  }
  return Multiply(inner.data(), blob + layout.down_offset, layout.model_dim, layout.expert_dim);
}

// The indices of the `count` largest values, descending; ties go to the lower index, NaN comes
// last.
std::vector<int32_t> LargestIndices(std::span<const float> values, int32_t count) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return values[a] > values[b] || (std::isnan(values[b]) && !std::isnan(values[a]));
  });
  order.resize(std::min<size_t>(count, order.size()));
  return order;
}

void NormalizeHead(float* head, int32_t head_dim, std::span<const float> weight, float epsilon) {
  const float scale = 1.0f / std::sqrt(Dot(head, head, head_dim) / head_dim + epsilon);
  for (int32_t i = 0; i < head_dim; ++i) {
    head[i] = head[i] * scale * weight[i];
  }
}

void RotateHead(float* head, int32_t position, const RopeTable& rope) {
  for (int32_t i = 0; i < rope.half_dim; ++i) {
    const float cos = rope.cos[int64_t{position} * rope.half_dim + i];
    const float sin = rope.sin[int64_t{position} * rope.half_dim + i];
    const float first = head[i];
    const float second = head[i + rope.half_dim];
    head[i] = first * cos - second * sin;
    head[i + rope.half_dim] = second * cos + first * sin;
  }
}

LogitAnswer ReduceRow(std::span<const float> logits, const LogitAsk& ask) {
  LogitAnswer answer;
  for (const spec::TokenId column : ask.columns) {
    answer.column_logits.push_back(logits[column]);
  }
  for (const int32_t token : LargestIndices(logits, ask.top_count)) {
    answer.top.push_back({token, logits[token]});
  }
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(double{logit} - largest);
  }
  answer.log_sum_exp = static_cast<float>(largest + std::log(sum));
  return answer;
}

class ReferenceKernels final : public Kernels {
 public:
  std::string_view name() const override { return "reference/f32"; }
  std::string layout_name(const std::optional<spec::Fp8Blocks>& fp8) const override {
    return fp8.has_value() ? fmt::format("row-major fp8 in blocks of {} x {}", fp8->rows, fp8->cols)
                           : "row-major f32";
  }
  spec::DType activation_dtype() const override { return spec::DType::kF32; }

  size_t packed_bytes(int64_t out_dim, int64_t in_dim) const override {
    return static_cast<size_t>(out_dim * in_dim) * sizeof(float);
  }

  void Pack(ConstMatrix weight, std::span<std::byte> packed) const override {
    ZP_CHECK(packed.size() == packed_bytes(weight.rows, weight.cols)) << packed.size();
    PackRows(weight, reinterpret_cast<float*>(packed.data()));
  }

  ExpertLayout expert_layout(int64_t model_dim,
                             int64_t expert_dim,
                             const std::optional<spec::Fp8Blocks>& fp8) const override {
    ExpertLayout layout{.model_dim = model_dim, .expert_dim = expert_dim, .fp8_blocks = fp8};
    if (fp8.has_value()) {
      layout.down_offset = RoundUp(2 * expert_dim * model_dim, kPartAlignment);
      layout.scales_offset = RoundUp(layout.down_offset + model_dim * expert_dim, kPartAlignment);
      const int64_t scale_count = 2 * layout.gate_scale_count() + layout.down_scale_count();
      layout.bytes = RoundUp(layout.scales_offset + scale_count * sizeof(float), kBlobAlignment);
    } else {
      layout.down_offset = packed_bytes(2 * expert_dim, model_dim);
      layout.bytes =
          RoundUp(layout.down_offset + packed_bytes(model_dim, expert_dim), kBlobAlignment);
    }
    return layout;
  }

  void PackExpert(ConstMatrix gate,
                  ConstMatrix up,
                  ConstMatrix down,
                  std::span<std::byte> blob) const override {
    const ExpertLayout layout = expert_layout(gate.cols, gate.rows, std::nullopt);
    ZP_CHECK(blob.size() == layout.bytes) << blob.size();
    float* gate_up = reinterpret_cast<float*>(blob.data());
    PackRows(gate, gate_up);
    PackRows(up, gate_up + gate.rows * gate.cols);
    PackRows(down, reinterpret_cast<float*>(blob.data() + layout.down_offset));
  }

  void PackFp8Expert(const Fp8Matrix& gate,
                     const Fp8Matrix& up,
                     const Fp8Matrix& down,
                     std::span<std::byte> blob) const override {
    const ExpertLayout layout = expert_layout(gate.cols, gate.rows, gate.blocks);
    ZP_CHECK(blob.size() == layout.bytes) << blob.size();
    const int64_t part_bytes = gate.rows * gate.cols;
    std::memcpy(blob.data(), gate.numbers, part_bytes);
    std::memcpy(blob.data() + part_bytes, up.numbers, part_bytes);
    std::memcpy(blob.data() + layout.down_offset, down.numbers, part_bytes);
    const int64_t gate_scales = layout.gate_scale_count();
    auto* scales = reinterpret_cast<float*>(blob.data() + layout.scales_offset);
    std::copy_n(gate.scales, gate_scales, scales);
    std::copy_n(up.scales, gate_scales, scales + gate_scales);
    std::copy_n(down.scales, layout.down_scale_count(), scales + 2 * gate_scales);
  }

  void MatMul(ConstMatrix x, const PackedWeight& weight, Matrix y) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      const std::vector<float> product =
          Multiply(x.row<float>(row), weight.data, weight.out_dim, weight.in_dim);
      std::copy(product.begin(), product.end(), y.row<float>(row));
    }
  }

  void MatMulAdd(ConstMatrix x, const PackedWeight& weight, Matrix y) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      const std::vector<float> product =
          Multiply(x.row<float>(row), weight.data, weight.out_dim, weight.in_dim);
      for (int64_t col = 0; col < weight.out_dim; ++col) {
        y.row<float>(row)[col] += product[col];
      }
    }
  }

  void ExpertFfn(ConstMatrix x,
                 const Routing& routing,
                 const ExpertBank& bank,
                 Matrix residual) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t rank = 0; rank < routing.experts_per_token; ++rank) {
        const int64_t index = row * routing.experts_per_token + rank;
        if (routing.expert_ids[index] == Routing::kNoExpert) {
          continue;
        }
        const std::byte* blob = bank.blobs[routing.expert_ids[index]];
        ZP_CHECK(blob != nullptr) << "expert " << routing.expert_ids[index];
        const std::vector<float> output = RunExpert(x.row<float>(row), bank.layout, blob);
        for (int64_t col = 0; col < residual.cols; ++col) {
          residual.row<float>(row)[col] += routing.expert_weights[index] * output[col];
        }
      }
    }
  }

  void Embed(std::span<const spec::TokenId> tokens, ConstMatrix table, Matrix hidden) override {
    for (size_t row = 0; row < tokens.size(); ++row) {
      for (int64_t col = 0; col < table.cols; ++col) {
        StoreElement(hidden, row, col, LoadElement(table, tokens[row], col));
      }
    }
  }

  void RmsNorm(ConstMatrix x, std::span<const float> weight, float epsilon, Matrix y) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      const float* in = x.row<float>(row);
      const float scale = 1.0f / std::sqrt(Dot(in, in, x.cols) / x.cols + epsilon);
      for (int64_t col = 0; col < x.cols; ++col) {
        StoreElement(y, row, col, in[col] * scale * weight[col]);
      }
    }
  }

  void HeadNormRope(Matrix heads,
                    int32_t head_dim,
                    std::span<const float> norm_weight,
                    float epsilon,
                    std::span<const int32_t> positions,
                    const RopeTable& rope) override {
    for (int64_t row = 0; row < heads.rows; ++row) {
      for (int64_t begin = 0; begin < heads.cols; begin += head_dim) {
        float* head = heads.row<float>(row) + begin;
        if (!norm_weight.empty()) {
          NormalizeHead(head, head_dim, norm_weight, epsilon);
        }
        RotateHead(head, positions[row], rope);
      }
    }
  }

  void RouteExperts(ConstMatrix router_logits, bool normalize, const Routing& routing) override {
    const int64_t count = routing.experts_per_token;
    for (int64_t row = 0; row < router_logits.rows; ++row) {
      const std::span<const float> logits(router_logits.row<float>(row), router_logits.cols);
      const float largest = *std::max_element(logits.begin(), logits.end());
      std::vector<float> weights(logits.size());
      std::transform(logits.begin(), logits.end(), weights.begin(), [&](float logit) {
        return std::exp(logit - largest);
      });
      const float total = std::accumulate(weights.begin(), weights.end(), 0.0f);
      const std::vector<int32_t> chosen = LargestIndices(logits, static_cast<int32_t>(count));
      float divisor = total;
      if (normalize && !std::isnan(total)) {
        divisor = 0;
        for (const int32_t expert : chosen) {
          divisor += weights[expert];
        }
      }
      for (int64_t rank = 0; rank < count; ++rank) {
        routing.expert_ids[row * count + rank] = chosen[rank];
        routing.expert_weights[row * count + rank] = weights[chosen[rank]] / divisor;
      }
    }
  }

  size_t kv_block_bytes(const AttentionShape& shape) const override { return KvBlockBytes(shape); }

  void WriteKv(ConstMatrix k,
               ConstMatrix v,
               std::span<const KvWrite> writes,
               const AttentionShape& shape,
               const KvBlocks& kv) override {
    reference::WriteKv(k, v, writes, shape, kv);
  }

  void Attend(ConstMatrix q,
              std::span<const AttentionSegment> segments,
              const AttentionShape& shape,
              const KvBlocks& kv,
              Matrix out) override {
    reference::Attend(q, segments, shape, kv, out);
  }

  void ReduceLogits(ConstMatrix logits,
                    std::span<const LogitAsk> asks,
                    std::span<LogitAnswer> answers) override {
    for (int64_t row = 0; row < logits.rows; ++row) {
      answers[row] =
          ReduceRow({logits.row<float>(row), static_cast<size_t>(logits.cols)}, asks[row]);
    }
  }

  void ColumnLogits(ConstMatrix x,
                    ConstMatrix table,
                    std::span<const spec::TokenId> columns,
                    std::span<float> out) override {
    for (size_t i = 0; i < columns.size(); ++i) {
      float sum = 0;
      for (int64_t col = 0; col < table.cols; ++col) {
        sum += x.row<float>(0)[col] * LoadElement(table, columns[i], col);
      }
      out[i] = sum;
    }
  }
};

}  // namespace

std::unique_ptr<Kernels> CreateKernels() { return std::make_unique<ReferenceKernels>(); }

}  // namespace zp::ops::reference
