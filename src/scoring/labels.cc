#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "fmt/format.h"
#include "scoring/log_probs.h"
#include "scoring/scoring.h"

namespace zp::scoring {
namespace {

using protocol::RowAsk;
using protocol::Sequence;
using protocol::SequenceResult;
using protocol::Work;

bool AllSingleTokens(const LabelQuestion& question) {
  return std::all_of(question.labels.begin(), question.labels.end(), [](const Tokens& label) {
    return label.size() == 1;
  });
}

// The row that predicts the label's first token.
int32_t LastPromptPosition(const LabelQuestion& question) {
  return static_cast<int32_t>(question.prompt.size()) - 1;
}

absl::Status CheckLabels(const LabelQuestion& question) {
  if (question.prompt.empty()) {
    return absl::InvalidArgumentError("prompt is empty");
  }
  if (question.labels.empty()) {
    return absl::InvalidArgumentError("labels is empty");
  }
  for (size_t label = 0; label < question.labels.size(); ++label) {
    if (question.labels[label].empty()) {
      return absl::InvalidArgumentError(fmt::format("labels[{}] is empty", label));
    }
  }
  if (const auto same = FindSameLabels(question.labels); same.has_value()) {
    return absl::InvalidArgumentError(
        fmt::format("labels[{}] and labels[{}] are the same tokens", same->first, same->second));
  }
  return absl::OkStatus();
}

Sequence SingleTokenSequence(const LabelQuestion& question) {
  RowAsk row{.position = LastPromptPosition(question),
             .full_vocabulary = question.normalization == Normalization::kVocabulary};
  for (const Tokens& label : question.labels) {
    row.columns.push_back(label[0]);
  }
  return {.tokens = question.prompt, .rows = {std::move(row)}};
}

// The prompt and all of the label but its last token, which needs no forward pass of its own.
Sequence MultiTokenSequence(const LabelQuestion& question, const Tokens& label) {
  Sequence sequence{.tokens = question.prompt};
  sequence.tokens.insert(sequence.tokens.end(), label.begin(), label.end() - 1);
  for (size_t i = 0; i < label.size(); ++i) {
    const int32_t position = LastPromptPosition(question) + static_cast<int32_t>(i);
    sequence.rows.push_back(FullVocabularyRow(position, label[i], /*top_count=*/0));
  }
  return sequence;
}

// One score per label, normalised over the vocabulary where the row carries its log-sum-exp.
absl::StatusOr<std::vector<double>> ReadSingleTokens(const LabelQuestion& question,
                                                     const SequenceResult& result) {
  ZP_RETURN_IF_ERROR(CheckRowCount(result, 1));
  const protocol::Row& row = result.rows[0];
  if (row.column_logits.size() != question.labels.size()) {
    return absl::InternalError(fmt::format("the worker answered {} columns where {} were asked",
                                           row.column_logits.size(),
                                           question.labels.size()));
  }
  const bool over_vocabulary = question.normalization == Normalization::kVocabulary;
  const double log_sum_exp = over_vocabulary ? row.log_sum_exp : 0.0;
  std::vector<double> scores;
  for (const float logit : row.column_logits) {
    const double score = static_cast<double>(logit) - log_sum_exp;
    if (!std::isfinite(score)) {
      return NotFinite(LastPromptPosition(question));
    }
    scores.push_back(over_vocabulary ? std::min(0.0, score) : score);
  }
  return scores;
}

absl::StatusOr<double> ReadMultiTokens(const LabelQuestion& question,
                                       const Tokens& label,
                                       const SequenceResult& result) {
  ZP_RETURN_IF_ERROR(CheckRowCount(result, label.size()));
  double sum = 0;
  for (size_t i = 0; i < label.size(); ++i) {
    const int32_t position = LastPromptPosition(question) + static_cast<int32_t>(i);
    ZP_ASSIGN_OR_RETURN(const double log_prob, ReadColumnLogProb(result.rows[i], position));
    sum += log_prob;
  }
  return sum;
}

absl::StatusOr<std::vector<double>> ReadScores(const LabelQuestion& question,
                                               std::span<const SequenceResult> results) {
  if (AllSingleTokens(question)) {
    return ReadSingleTokens(question, results[0]);
  }
  std::vector<double> scores;
  for (size_t label = 0; label < question.labels.size(); ++label) {
    ZP_ASSIGN_OR_RETURN(const double score,
                        ReadMultiTokens(question, question.labels[label], results[label]));
    scores.push_back(score);
  }
  return scores;
}

}  // namespace

size_t LabelSequenceCount(const LabelQuestion& question) {
  return AllSingleTokens(question) ? 1 : question.labels.size();
}

std::optional<std::pair<size_t, size_t>> FindSameLabels(const std::vector<Tokens>& labels) {
  std::map<Tokens, size_t> first_use;
  for (size_t label = 0; label < labels.size(); ++label) {
    const auto [earlier, is_new] = first_use.emplace(labels[label], label);
    if (!is_new) {
      return std::pair(earlier->second, label);
    }
  }
  return std::nullopt;
}

absl::Status PlanLabels(const LabelQuestion& question, Work& work) {
  ZP_RETURN_IF_ERROR(CheckLabels(question));
  if (AllSingleTokens(question)) {
    work.sequences.push_back(SingleTokenSequence(question));
    return absl::OkStatus();
  }
  for (const Tokens& label : question.labels) {
    work.sequences.push_back(MultiTokenSequence(question, label));
  }
  return absl::OkStatus();
}

absl::StatusOr<LabelAnswer> ReadLabels(const LabelQuestion& question,
                                       std::span<const SequenceResult> results) {
  if (results.size() != LabelSequenceCount(question)) {
    return absl::InternalError(fmt::format("the worker answered {} sequences where {} were asked",
                                           results.size(),
                                           LabelSequenceCount(question)));
  }
  LabelAnswer answer;
  ZP_ASSIGN_OR_RETURN(answer.log_probs, ReadScores(question, results));
  if (question.normalization == Normalization::kLabels) {
    LogSoftmax(answer.log_probs);
  }
  const auto best = std::max_element(answer.log_probs.begin(), answer.log_probs.end());
  answer.best_label = static_cast<int32_t>(best - answer.log_probs.begin());
  return answer;
}

}  // namespace zp::scoring
