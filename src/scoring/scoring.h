// The questions users ask, as rows of logits, and the rows of logits as answers.
//
// Four questions, one forward pass each, nothing generated:
//   labels        P(label | prompt) for several labels of one or more tokens, normalised over the
//   labels or the vocabulary continuation  log P(continuation | prompt): sum, per token, whether
//   greedy decoding would have written it echo          log-probs of a text's own tokens, with the
//   n most likely alternatives at each position embedding     a pooled hidden state, normalised or
//   not
// Each has a Plan (question -> sequences and rows) and a Read (rows -> answer). Sequences that
// share a prompt cost it once: the engine shares equal prefixes.
//
// Thread safety: pure functions.
// Errors: InvalidArgument that names the field ("labels[2] is empty"); Internal when the model gave
// logits that are not finite.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "protocol/work.h"

namespace zp::scoring {

using protocol::TokenId;
using Tokens = std::vector<TokenId>;

// --- Labels ---
enum class Normalization {
  kLabels,      // probabilities of the labels sum to 1
  kVocabulary,  // log P(label | prompt) as the model has it
};

struct LabelQuestion {
  Tokens prompt;               // at least one token
  std::vector<Tokens> labels;  // at least one, none empty; labels may be prefixes of each other
  Normalization normalization = Normalization::kLabels;
};
// If all labels are single tokens: one sequence, one row of label columns (the whole vocabulary
// only where normalised over it, then with log-sum-exp). Otherwise one sequence per distinct label
// minus its last token, each position's row over the full vocabulary. Appends the question's
// sequences to `work`.
absl::Status PlanLabels(const LabelQuestion& question, protocol::Work& work);

struct LabelAnswer {
  std::vector<double> log_probs;  // one per label, normalised as asked
  int32_t best_label = 0;         // ties go to the first
};
// `results` are exactly the sequences that PlanLabels appended.
absl::StatusOr<LabelAnswer> ReadLabels(const LabelQuestion& question,
                                       std::span<const protocol::SequenceResult> results);

// Two labels of the same tokens, which are one answer and refused: the first such label that
// repeats an earlier one, and before it that one.
std::optional<std::pair<size_t, size_t>> FindSameLabels(const std::vector<Tokens>& labels);

// How many sequences PlanLabels appends.
size_t LabelSequenceCount(const LabelQuestion& question);

// --- Continuation ---
struct ContinuationQuestion {
  Tokens prompt;        // at least one token
  Tokens continuation;  // at least one token
};
absl::Status PlanContinuation(const ContinuationQuestion& question,
                              protocol::Work& work);  // appends one sequence

struct ContinuationAnswer {
  double log_prob = 0;                  // sum
  std::vector<double> token_log_probs;  // one per token of the continuation
  bool is_greedy = false;               // each token was the most likely one
};
absl::StatusOr<ContinuationAnswer> ReadContinuation(const ContinuationQuestion& question,
                                                    const protocol::SequenceResult& result);

// --- Echo ---
struct EchoQuestion {
  Tokens tokens;               // at least one
  int32_t top_count = 0;       // alternatives per position
  int32_t first_position = 1;  // the first token whose log-prob is wanted (token 0 has none)
  bool next_token = false;     // also the distribution after the last token (for max_tokens = 1)
};
absl::Status PlanEcho(const EchoQuestion& question, protocol::Work& work);  // appends one sequence

struct TokenLogProb {
  TokenId token = 0;
  double log_prob = 0;
};
struct EchoPosition {
  double log_prob = 0;            // of the token that stands there
  std::vector<TokenLogProb> top;  // descending, ties to the lower token
};
struct EchoAnswer {
  std::vector<EchoPosition> positions;  // tokens first_position .. end
  std::vector<TokenLogProb> next;  // with next_token: the most likely next tokens, at least one
};
absl::StatusOr<EchoAnswer> ReadEcho(const EchoQuestion& question,
                                    const protocol::SequenceResult& result);

// --- Embedding ---
struct EmbeddingQuestion {
  Tokens tokens;
  protocol::Pooling pooling = protocol::Pooling::kLastToken;
  bool normalize = true;  // to length 1
};
absl::Status PlanEmbedding(const EmbeddingQuestion& question,
                           protocol::Work& work);  // appends one sequence
absl::StatusOr<std::vector<float>> ReadEmbedding(const EmbeddingQuestion& question,
                                                 const protocol::SequenceResult& result);

}  // namespace zp::scoring
