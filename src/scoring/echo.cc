#include <algorithm>

#include "fmt/format.h"
#include "scoring/log_probs.h"
#include "scoring/scoring.h"

namespace zp::scoring {
namespace {

int32_t TokenCount(const EchoQuestion& question) {
  return static_cast<int32_t>(question.tokens.size());
}

size_t RowCount(const EchoQuestion& question) {
  return question.tokens.size() - question.first_position + (question.next_token ? 1 : 0);
}

}  // namespace

absl::Status PlanEcho(const EchoQuestion& question, protocol::Work& work) {
  if (question.tokens.empty()) {
    return absl::InvalidArgumentError("tokens is empty");
  }
  if (question.top_count < 0) {
    return absl::InvalidArgumentError(
        fmt::format("top_count is {}, which is negative", question.top_count));
  }
  if (question.first_position < 1 || question.first_position > TokenCount(question)) {
    return absl::InvalidArgumentError(fmt::format(
        "first_position is {}, not in 1..{}", question.first_position, TokenCount(question)));
  }
  protocol::Sequence sequence{.tokens = question.tokens};
  for (int32_t i = question.first_position; i < TokenCount(question); ++i) {
    sequence.rows.push_back(FullVocabularyRow(i - 1, question.tokens[i], question.top_count));
  }
  if (question.next_token) {
    sequence.rows.push_back({.position = TokenCount(question) - 1,
                             .full_vocabulary = true,
                             .top_count = std::max(1, question.top_count)});
  }
  work.sequences.push_back(std::move(sequence));
  return absl::OkStatus();
}

absl::StatusOr<EchoAnswer> ReadEcho(const EchoQuestion& question,
                                    const protocol::SequenceResult& result) {
  ZP_RETURN_IF_ERROR(CheckRowCount(result, RowCount(question)));
  EchoAnswer answer;
  for (int32_t i = question.first_position; i < TokenCount(question); ++i) {
    const protocol::Row& row = result.rows[i - question.first_position];
    EchoPosition position;
    ZP_ASSIGN_OR_RETURN(position.log_prob, ReadColumnLogProb(row, i - 1));
    ZP_ASSIGN_OR_RETURN(position.top, ReadTop(row, i - 1));
    answer.positions.push_back(std::move(position));
  }
  if (question.next_token) {
    ZP_ASSIGN_OR_RETURN(answer.next, ReadTop(result.rows.back(), TokenCount(question) - 1));
  }
  return answer;
}

}  // namespace zp::scoring
