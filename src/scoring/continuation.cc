#include "scoring/log_probs.h"
#include "scoring/scoring.h"

namespace zp::scoring {

absl::Status PlanContinuation(const ContinuationQuestion& question, protocol::Work& work) {
  if (question.prompt.empty()) {
    return absl::InvalidArgumentError("prompt is empty");
  }
  if (question.continuation.empty()) {
    return absl::InvalidArgumentError("continuation is empty");
  }
  protocol::Sequence sequence{.tokens = question.prompt};
  int32_t position = static_cast<int32_t>(question.prompt.size()) - 1;
  for (const TokenId token : question.continuation) {
    sequence.rows.push_back(FullVocabularyRow(position++, token, /*top_count=*/1));
  }
  // The last token needs no forward pass of its own.
  sequence.tokens.insert(
      sequence.tokens.end(), question.continuation.begin(), question.continuation.end() - 1);
  work.sequences.push_back(std::move(sequence));
  return absl::OkStatus();
}

absl::StatusOr<ContinuationAnswer> ReadContinuation(const ContinuationQuestion& question,
                                                    const protocol::SequenceResult& result) {
  ZP_RETURN_IF_ERROR(CheckRowCount(result, question.continuation.size()));
  ContinuationAnswer answer{.is_greedy = true};
  int32_t position = static_cast<int32_t>(question.prompt.size()) - 1;
  for (size_t i = 0; i < question.continuation.size(); ++i, ++position) {
    const protocol::Row& row = result.rows[i];
    ZP_ASSIGN_OR_RETURN(const double log_prob, ReadColumnLogProb(row, position));
    answer.token_log_probs.push_back(log_prob);
    answer.log_prob += log_prob;
    answer.is_greedy &= !row.top.empty() && row.top[0].token == question.continuation[i];
  }
  return answer;
}

}  // namespace zp::scoring
