#include "scoring/log_probs.h"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace zp::scoring {
namespace {

// The model's own rounding can lift logit - log_sum_exp a few ulps above zero.
double LogProb(float logit, float log_sum_exp) {
  return std::min(0.0, static_cast<double>(logit) - static_cast<double>(log_sum_exp));
}

}  // namespace

absl::Status NotFinite(int32_t position) {
  return absl::InternalError(
      fmt::format("the model gave logits that are not finite (prompt position {})", position));
}

absl::Status CheckRowCount(const protocol::SequenceResult& result, size_t row_count) {
  if (result.rows.size() != row_count) {
    return absl::InternalError(fmt::format(
        "the worker answered {} rows where {} were asked", result.rows.size(), row_count));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> ReadColumnLogProb(const protocol::Row& row, int32_t position) {
  if (row.column_logits.size() != 1) {
    return absl::InternalError(
        fmt::format("the worker answered {} columns where 1 was asked", row.column_logits.size()));
  }
  if (!std::isfinite(row.column_logits[0]) || !std::isfinite(row.log_sum_exp)) {
    return NotFinite(position);
  }
  return LogProb(row.column_logits[0], row.log_sum_exp);
}

absl::StatusOr<std::vector<TokenLogProb>> ReadTop(const protocol::Row& row, int32_t position) {
  if (!std::isfinite(row.log_sum_exp)) {
    return NotFinite(position);
  }
  std::vector<TokenLogProb> top;
  top.reserve(row.top.size());
  for (const protocol::TokenLogit& entry : row.top) {
    if (!std::isfinite(entry.logit)) {
      return NotFinite(position);
    }
    top.push_back({.token = entry.token, .log_prob = LogProb(entry.logit, row.log_sum_exp)});
  }
  return top;
}

void LogSoftmax(std::vector<double>& scores) {
  const double highest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) {
    sum += std::exp(score - highest);
  }
  const double log_sum_exp = highest + std::log(sum);
  for (double& score : scores) {
    score -= log_sum_exp;
  }
}

protocol::RowAsk FullVocabularyRow(int32_t position, TokenId token, int32_t top_count) {
  return {
      .position = position, .columns = {token}, .full_vocabulary = true, .top_count = top_count};
}

}  // namespace zp::scoring
