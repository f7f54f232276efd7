#include "ops/cpu/logits.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/cpu/row_kernels.h"

namespace zp::ops::cpu {
namespace {

// Whether `a` comes before `b` in the answer.
bool IsBefore(const TokenLogit& a, const TokenLogit& b) {
  if (std::isnan(a.logit) || std::isnan(b.logit)) {
    return std::isnan(a.logit) == std::isnan(b.logit) ? a.token < b.token : std::isnan(b.logit);
  }
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

}  // namespace

std::vector<TokenLogit> LargestLogits(std::span<const float> values, int32_t count) {
  const auto total = static_cast<int64_t>(values.size());
  const int64_t wanted = std::clamp<int64_t>(count, 0, total);
  std::vector<TokenLogit> best;  // a heap, the last of the best in front
  best.reserve(wanted);
  for (int64_t i = 0; i < wanted; ++i) {
    best.push_back({static_cast<spec::TokenId>(i), values[i]});
  }
  std::make_heap(best.begin(), best.end(), IsBefore);
  if (wanted > 0) {
    int64_t i = wanted;
    while ((i = FindAbove(values.data(), i, total, best.front().logit)) < total) {
      const TokenLogit candidate{static_cast<spec::TokenId>(i), values[i]};
      if (IsBefore(candidate, best.front())) {
        std::pop_heap(best.begin(), best.end(), IsBefore);
        best.back() = candidate;
        std::push_heap(best.begin(), best.end(), IsBefore);
      }
      ++i;
    }
  }
  std::sort_heap(best.begin(), best.end(), IsBefore);
  return best;
}

void RouteRow(std::span<const float> logits,
              bool normalize,
              std::span<int32_t> expert_ids,
              std::span<float> expert_weights) {
  const ExpSum all = SumOfExp(logits.data(), static_cast<int64_t>(logits.size()));
  const std::vector<TokenLogit> chosen =
      LargestLogits(logits, static_cast<int32_t>(expert_ids.size()));
  float chosen_sum = 0;
  for (size_t rank = 0; rank < chosen.size(); ++rank) {
    expert_ids[rank] = chosen[rank].token;
    expert_weights[rank] = std::exp(chosen[rank].logit - all.largest);
    chosen_sum += expert_weights[rank];
  }
  const auto all_sum = static_cast<float>(all.sum);
  const float divisor = normalize && !std::isnan(all_sum) ? chosen_sum : all_sum;
  for (float& weight : expert_weights) {
    weight /= divisor;
  }
}

LogitAnswer ReduceRow(std::span<const float> logits, const LogitAsk& ask) {
  LogitAnswer answer;
  answer.column_logits.reserve(ask.columns.size());
  for (const spec::TokenId column : ask.columns) {
    ZP_CHECK(column >= 0 && static_cast<size_t>(column) < logits.size()) << column;
    answer.column_logits.push_back(logits[column]);
  }
  answer.top = LargestLogits(logits, ask.top_count);
  const ExpSum all = SumOfExp(logits.data(), static_cast<int64_t>(logits.size()));
  answer.log_sum_exp = static_cast<float>(all.largest + std::log(all.sum));
  return answer;
}

}  // namespace zp::ops::cpu
