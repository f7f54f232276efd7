#include "ops/reference/reference_kernels.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "ops/element.h"
#include "ops/reference/reference_attention.h"

namespace zp::ops::reference {
namespace {

constexpr size_t kBlobAlignment = 4096;

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

std::vector<float> RunExpert(const float* x, const ExpertLayout& layout, const std::byte* blob) {
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
  std::string layout_name() const override { return "row-major f32"; }
  spec::DType activation_dtype() const override { return spec::DType::kF32; }

  size_t packed_bytes(int64_t out_dim, int64_t in_dim) const override {
    return static_cast<size_t>(out_dim * in_dim) * sizeof(float);
  }

  void Pack(ConstMatrix weight, std::span<std::byte> packed) const override {
    ZP_CHECK(packed.size() == packed_bytes(weight.rows, weight.cols)) << packed.size();
    PackRows(weight, reinterpret_cast<float*>(packed.data()));
  }

  ExpertLayout expert_layout(int64_t model_dim, int64_t expert_dim) const override {
    ExpertLayout layout{.model_dim = model_dim, .expert_dim = expert_dim};
    layout.down_offset = packed_bytes(2 * expert_dim, model_dim);
    const size_t used = layout.down_offset + packed_bytes(model_dim, expert_dim);
    layout.bytes = (used + kBlobAlignment - 1) / kBlobAlignment * kBlobAlignment;
    return layout;
  }

  void PackExpert(ConstMatrix gate,
                  ConstMatrix up,
                  ConstMatrix down,
                  std::span<std::byte> blob) const override {
    const ExpertLayout layout = expert_layout(gate.cols, gate.rows);
    ZP_CHECK(blob.size() == layout.bytes) << blob.size();
    float* gate_up = reinterpret_cast<float*>(blob.data());
    PackRows(gate, gate_up);
    PackRows(up, gate_up + gate.rows * gate.cols);
    PackRows(down, reinterpret_cast<float*>(blob.data() + layout.down_offset));
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
