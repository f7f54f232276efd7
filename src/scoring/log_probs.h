// Reading one row of logits: shared by the questions of this room.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "protocol/work.h"
#include "scoring/scoring.h"

namespace zp::scoring {

// Internal: a row at `position` holds a number that is not finite.
absl::Status NotFinite(int32_t position);

// Internal unless `result` has as many rows as were asked: a sink that answers something else must
// not take the process down.
absl::Status CheckRowCount(const protocol::SequenceResult& result, size_t row_count);

// log P(column | tokens[0..position]) over the vocabulary, for the only column of a
// full-vocabulary row.
absl::StatusOr<double> ReadColumnLogProb(const protocol::Row& row, int32_t position);

// The row's most likely tokens with their log-probs over the vocabulary.
absl::StatusOr<std::vector<TokenLogProb>> ReadTop(const protocol::Row& row, int32_t position);

// log-softmax in place. REQUIRES: all finite, at least one.
void LogSoftmax(std::vector<double>& scores);

// A row over the full vocabulary with the logit of `token` and the `top_count` most likely tokens.
protocol::RowAsk FullVocabularyRow(int32_t position, TokenId token, int32_t top_count);

}  // namespace zp::scoring
