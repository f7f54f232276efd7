// What travels between gateway and worker: tokenized work and its result. No text, no JSON, no
// HTTP.
//
// A unit of Work is a set of token sequences that belong together (they share prefixes, are placed
// on one rank and answered together) with the rows of logits that are wanted of each. What a row
// means (a label, a continuation, an echo) is known to `scoring` alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "spec/model_spec.h"

namespace zp::protocol {

using spec::TokenId;

// One row of logits: the distribution of the token that follows tokens[0..position].
struct RowAsk {
  int32_t position = 0;
  std::vector<TokenId> columns;  // logits of these tokens, in this order
  bool full_vocabulary = false;  // also the log-sum-exp over the vocabulary (costs 2*h*V)
  int32_t top_count = 0;         // the most likely tokens; needs full_vocabulary
};

enum class Pooling { kNone, kLastToken, kMean };

struct Sequence {
  std::vector<TokenId> tokens;       // at least one
  std::vector<RowAsk> rows;          // rising positions
  Pooling pooling = Pooling::kNone;  // of the hidden states after the last norm
};

struct Work {
  std::string request_id;
  std::vector<Sequence> sequences;
  // Works share cached prefixes with those of the same salt only: who guesses a stranger's prompt
  // must not learn from the clock that he guessed right. Empty: everybody's.
  std::string cache_salt = {};
  int64_t priority = 0;  // lower is earlier
  // A rank had accepted it and was lost: a full queue takes it all the same. What was accepted in
  // all stays what the queues of all ranks may hold.
  bool is_resent = false;
  // After it nobody waits for the answer: a work that has not started by then is dropped with
  // DeadlineExceeded.
  std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt;
  int64_t token_count() const {
    int64_t count = 0;
    for (const Sequence& sequence : sequences) {
      count += static_cast<int64_t>(sequence.tokens.size());
    }
    return count;
  }
};

struct TokenLogit {
  TokenId token = 0;
  float logit = 0;
};

struct Row {
  std::vector<float> column_logits;
  float log_sum_exp = 0;        // only with full_vocabulary
  std::vector<TokenLogit> top;  // descending, ties to the lower token
};

struct SequenceResult {
  std::vector<Row> rows;      // as asked
  std::vector<float> pooled;  // [model_dim], not normalised; empty without pooling
};

// What the work cost. Tokens shared with other work of the same pass are charged to the first that
// brought them.
struct Usage {
  int64_t prompt_tokens = 0;    // asked: sum over the sequences
  int64_t computed_tokens = 0;  // charged to this work after sharing
  int64_t cached_tokens = 0;    // not computed, since the rank held them from earlier passes
  double flops = 0;             // charged to this work
  double queue_seconds = 0;
  double compute_seconds = 0;  // of the pass it was part of
};

struct WorkResult {
  std::vector<SequenceResult> sequences;
  Usage usage;
};

// The key of a payload that ResourceExhausted carries: after how many whole seconds to come again,
// as decimal digits, at least "1".
inline constexpr char kRetrySecondsPayload[] = "zeroprefill/retry_seconds";

// Where tokenized work goes: the scheduler of a rank in this process, a worker behind gRPC, or a
// router in front of many of them.
//
// Thread safety: Submit from any thread. Never blocks.
class WorkSink {
 public:
  using Done = std::function<void(absl::StatusOr<WorkResult>)>;

  virtual ~WorkSink() = default;

  // Calls `done` exactly once, from a thread of the sink's, unless Submit itself fails:
  // ResourceExhausted with kRetrySecondsPayload when the queue is full, InvalidArgument when the
  // work can never fit (the message names the limit), Unavailable when shutting down. A request to
  // stop through `cancel` drops the work if it has not started (`done` gets Cancelled).
  // Unavailable, here or in `done`, means that this rank will not answer and another may: work is
  // idempotent.
  virtual absl::Status Submit(Work work, std::stop_token cancel, Done done) = 0;

  // Whether a work that came now would be refused whatever it is: then as Submit would refuse it,
  // before anybody goes to the trouble of making it. OK promises nothing.
  virtual absl::Status CheckRoom(
      std::optional<std::chrono::steady_clock::time_point> /*deadline*/) {
    return absl::OkStatus();
  }
};

}  // namespace zp::protocol
