// The POST endpoints as plain functions: a request body becomes work and the way to read its
// answer.
//
//   body -> Prepared{work, read}     -> forward pass ->     read(result) -> answer
//
// An endpoint that needs no forward pass prepares no sequences. Wire formats: docs/api.md.
//
// Thread safety: pure functions; run them off the I/O threads, parsing and tokenizing take a while.
// Errors: InvalidArgument that names the field, NotFound for another model's name.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "boost/json/object.hpp"
#include "gateway/served_model.h"
#include "protocol/work.h"

namespace zp::gateway {

struct Prepared {
  protocol::Work work;
  // Called once with the result of `work`.
  std::function<absl::StatusOr<boost::json::object>(const protocol::WorkResult& result)> read;
};

struct RequestContext {
  const ServedModel& model;
  std::string request_id;
  int64_t created_seconds = 0;  // Unix time, for answers that carry it
};

using Endpoint = absl::StatusOr<Prepared> (*)(const boost::json::object& body,
                                              const RequestContext& context);

// P(label | query + item) for each item, as SGLang's /v1/score: query and items are text (glued
// together, then tokenized) or both token ids; label_token_ids or our `labels` (text).
absl::StatusOr<Prepared> PrepareScore(const boost::json::object& body,
                                      const RequestContext& context);

// The best of `labels` for each input; vLLM's envelope. `template` or a `task` of the model.
absl::StatusOr<Prepared> PrepareClassify(const boost::json::object& body,
                                         const RequestContext& context);

// The scoring subset of OpenAI's completions: log-probs of the prompt's own tokens (echo) and of
// the next token (max_tokens 1), as lm-evaluation-harness asks for them.
absl::StatusOr<Prepared> PrepareCompletions(const boost::json::object& body,
                                            const RequestContext& context);

// log P(continuation | context), per token too, and whether greedy decoding would write it.
absl::StatusOr<Prepared> PrepareLoglikelihood(const boost::json::object& body,
                                              const RequestContext& context);

absl::StatusOr<Prepared> PrepareEmbeddings(const boost::json::object& body,
                                           const RequestContext& context);

absl::StatusOr<Prepared> PrepareTokenize(const boost::json::object& body,
                                         const RequestContext& context);
absl::StatusOr<Prepared> PrepareDetokenize(const boost::json::object& body,
                                           const RequestContext& context);

// --- What the endpoints share ---

// What the request cost. prompt_tokens: the tokens of the prompts as the client sees them, each
// counted once however many labels it has; cached_tokens: not computed, since the rank held them
// from earlier passes; computed_tokens and flops: what the pass charged.
boost::json::object UsageJson(int64_t prompt_tokens, const protocol::Usage& usage);

// Part of what a request comes to.
struct RequestCost {
  int64_t sequences = 0;
  int64_t tokens = 0;          // of these sequences together
  int64_t answer_numbers = 0;  // see RequestLimits
};

// Keeps a small body from asking for much: prompts, labels and alternatives multiply. Spend before
// anything of that size is built. Beyond a limit is InvalidArgument: ResourceExhausted would invite
// a retry.
class RequestBudget {
 public:
  explicit RequestBudget(const RequestLimits& limits) : limits_(limits) {}

  absl::Status Spend(const RequestCost& cost);

 private:
  RequestLimits limits_;
  int64_t tokens_ = 0;
  int64_t answer_numbers_ = 0;
};

// Two labels of the same tokens are one answer; `field` is where the client wrote them.
absl::Status CheckDistinct(std::string_view field, const std::vector<scoring::Tokens>& labels);

// Many label questions planned into one Work, and their answers read back in order.
class LabelBatch {
 public:
  // REQUIRES: labels as EncodeLabels gives them.
  LabelBatch(std::vector<scoring::Tokens> labels,
             scoring::Normalization normalization,
             const RequestLimits& limits);

  absl::Status Add(scoring::Tokens prompt, protocol::Work& work);
  absl::StatusOr<std::vector<scoring::LabelAnswer>> Read(const protocol::WorkResult& result) const;

  int64_t prompt_tokens() const { return prompt_tokens_; }
  // The last token of a label needs no place: it is only predicted.
  int64_t longest_label_places() const { return longest_label_tokens_ - 1; }

 private:
  RequestCost CostOf(int64_t prompt_tokens) const;

  scoring::LabelQuestion question_;  // what all have in common: the latest prompt is no matter
  int64_t label_tokens_ = 0;         // of all labels together
  int64_t longest_label_tokens_ = 1;
  RequestBudget budget_;
  std::vector<scoring::Tokens> prompts_;
  int64_t prompt_tokens_ = 0;
};

}  // namespace zp::gateway
