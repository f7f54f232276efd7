#include "engine/logit_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/element.h"

namespace zp::engine {
namespace {

// Bound of the [chunk, vocab] matrix. 64 rows of a 152K vocabulary fit, which is enough for the
// product to run at speed.
constexpr int64_t kLogitChunkBytes = int64_t{64} << 20;

bool AllFinite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

}  // namespace

LogitReader::LogitReader(const model::ModelWeights& weights, ops::Kernels& kernels)
    : weights_(weights), kernels_(kernels) {}

std::vector<protocol::Row> LogitReader::Read(ops::ConstMatrix hidden, std::span<const Ask> asks) {
  std::vector<protocol::Row> rows(asks.size());
  std::vector<size_t> full_rows;
  for (size_t index = 0; index < asks.size(); ++index) {
    const Ask& ask = asks[index];
    if (ask.row->full_vocabulary) {
      full_rows.push_back(index);
    } else {
      rows[index].column_logits.resize(ask.row->columns.size());
      kernels_.ColumnLogits(hidden.Rows(ask.hidden_row, 1),
                            weights_.output_head(),
                            ask.row->columns,
                            rows[index].column_logits);
    }
  }
  ReadFullRows(hidden, asks, full_rows, rows);
  return rows;
}

void LogitReader::ReadFullRows(ops::ConstMatrix hidden,
                               std::span<const Ask> asks,
                               std::span<size_t> chosen,
                               std::vector<protocol::Row>& rows) {
  std::ranges::stable_sort(chosen, {}, [&](size_t index) { return asks[index].hidden_row; });
  const int64_t row_logit_bytes = weights_.spec().vocab_count * static_cast<int64_t>(sizeof(float));
  const auto chunk_rows =
      static_cast<size_t>(std::max<int64_t>(1, kLogitChunkBytes / row_logit_bytes));
  std::vector<MergedAsk> chunk;
  for (const size_t index : chosen) {
    const bool same_row = !chunk.empty() && chunk.back().hidden_row == asks[index].hidden_row;
    if (!same_row && chunk.size() == chunk_rows) {
      ReadChunk(hidden, chunk, rows);
      chunk.clear();
    }
    if (!same_row) {
      chunk.push_back(
          {.hidden_row = asks[index].hidden_row, .columns = {}, .top_count = 0, .parts = {}});
    }
    chunk.back().Add(*asks[index].row, index);
  }
  if (!chunk.empty()) {
    ReadChunk(hidden, chunk, rows);
  }
}

void LogitReader::MergedAsk::Add(const protocol::RowAsk& ask, size_t index) {
  parts.emplace_back(&ask, index);
  columns.insert(columns.end(), ask.columns.begin(), ask.columns.end());
  top_count = std::max(top_count, ask.top_count);
}

void LogitReader::ReadChunk(ops::ConstMatrix hidden,
                            std::span<const MergedAsk> chunk,
                            std::vector<protocol::Row>& rows) {
  const auto count = static_cast<int64_t>(chunk.size());
  const int64_t vocab_count = weights_.spec().vocab_count;
  const int64_t row_bytes = hidden.cols * static_cast<int64_t>(spec::SizeOf(hidden.dtype));
  gathered_.EnsureBytes(count * row_bytes, "activations");
  logits_.EnsureBytes(count * vocab_count * sizeof(float), "logits");

  std::vector<ops::LogitAsk> logit_asks;
  for (int64_t index = 0; index < count; ++index) {
    const MergedAsk& ask = chunk[index];
    std::memcpy(
        gathered_.data() + index * row_bytes, hidden.Rows(ask.hidden_row, 1).data, row_bytes);
    logit_asks.push_back({ask.columns, ask.top_count});
  }
  const ops::ConstMatrix x{gathered_.data(), hidden.dtype, count, hidden.cols, hidden.cols};
  const ops::Matrix logits{logits_.data(), spec::DType::kF32, count, vocab_count, vocab_count};
  kernels_.MatMul(x, weights_.packed_output_head(), logits);

  std::vector<ops::LogitAnswer> answers(count);
  kernels_.ReduceLogits(logits, logit_asks, answers);
  for (int64_t index = 0; index < count; ++index) {
    Split(chunk[index], answers[index], rows);
  }
}

void LogitReader::Split(const MergedAsk& ask,
                        const ops::LogitAnswer& answer,
                        std::vector<protocol::Row>& rows) {
  auto column = answer.column_logits.begin();
  for (const auto& [part, index] : ask.parts) {
    protocol::Row& row = rows[index];
    const auto column_end = column + static_cast<int64_t>(part->columns.size());
    row.column_logits.assign(column, column_end);
    column = column_end;
    row.log_sum_exp = answer.log_sum_exp;
    const size_t top_count = std::min<size_t>(part->top_count, answer.top.size());
    for (const ops::TokenLogit& top : std::span(answer.top).first(top_count)) {
      row.top.push_back({top.token, top.logit});
    }
  }
}

std::vector<float> MeanOfRows(ops::ConstMatrix hidden, std::span<const int64_t> rows) {
  std::vector<float> mean(hidden.cols, 0.0f);
  for (const int64_t row : rows) {
    for (int64_t column = 0; column < hidden.cols; ++column) {
      mean[column] += ops::LoadElement(hidden, row, column);
    }
  }
  for (float& value : mean) {
    value /= static_cast<float>(rows.size());
  }
  return mean;
}

bool IsFinite(const protocol::SequenceResult& result) {
  return AllFinite(result.pooled) && std::ranges::all_of(result.rows, [](const protocol::Row& row) {
           return std::isfinite(row.log_sum_exp) && AllFinite(row.column_logits);
         });
}

}  // namespace zp::engine
