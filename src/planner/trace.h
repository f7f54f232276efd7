// A trace: requests in the order in which they arrived, as a router is to see them again.
//
// Long traces have a hundred million tokens, so a prompt is kept as runs of content, from which its
// tokens are made when it arrives: equal runs at equal places are equal tokens, which is all that
// sharing depends on.
//
// Thread safety: values; free functions without shared state.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "protocol/work.h"
#include "spec/model_spec.h"

namespace zp::planner {

// `token_count` tokens that follow from `content` alone.
struct ContentRun {
  uint64_t content = 0;
  int32_t token_count = 0;
};

struct TracePrompt {
  std::vector<ContentRun> runs = {};
  std::vector<spec::TokenId> tokens = {};  // after the runs; of traces that know them

  int64_t token_count() const;
};

// Answered together: one HTTP request.
struct TraceRequest {
  double arrival_s = 0;  // since the trace began
  std::vector<TracePrompt> prompts = {};

  int64_t token_count() const;
};

struct Trace {
  std::string name;
  std::vector<TraceRequest> requests = {};  // rising arrival_s

  int64_t token_count() const;
};

// The work of a request: every prompt is asked for the logits of two labels after its last token.
// Tokens lie in [0, vocab_count); prompts are cut at `max_prompt_tokens`.
protocol::Work MakeWork(const TraceRequest& request,
                        const std::string& request_id,
                        int32_t vocab_count,
                        int32_t max_prompt_tokens);

// The requests of all of them, spread evenly over the whole, one a second.
Trace MixTraces(const std::string& name, std::vector<Trace> traces);

// How much of a trace need not be computed by an infinite cache: tokens in whole blocks that an
// earlier prompt began with, over all tokens.
double IdealHitRate(const Trace& trace);

// Traces made from a seed, that nothing need be downloaded for:
//
//   few-shot      five tasks with five examples each (700 to 1,100 tokens), a question of 60 to 320
//                 tokens, asked once for each of two to four answers: evaluation sets
//   documents     nine in ten ask one of few tasks about a short text; one in ten asks several
//                 questions in a row about the same document of 8,192 tokens
//   rerank        a query with 4 to 24 passages of 80 to 400 tokens: one request
//   conversation  turns of dialogues, each with all that was said before
//   uneven        nothing shared, 64 to 16,384 tokens, log-uniform
//   long-tail     256 tokens each, but one in a hundred has 16,384; nothing shared
//
// Arrivals are a Poisson process of one request a second (a replay sets the pace).
// InvalidArgument for another name.
absl::StatusOr<Trace> GenerateTrace(const std::string& name, int32_t request_count, uint64_t seed);

}  // namespace zp::planner
