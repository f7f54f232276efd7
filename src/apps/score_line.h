// One line of a file to score: which question it asks and under which name its answer is kept.
//
// Thread safety: pure functions.
// Errors: InvalidArgument that says what is wrong with the line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "gateway/message.h"

namespace zp::apps {

struct ScoreLine {
  std::string id;  // custom_id, or "line-<number>"
  gateway::Request request;
};

// The shapes a line may have:
//   {"custom_id", "method", "url", "body"}     as in OpenAI's batch files
//   {"request": {...}}                         the inner object is the question
//   a question itself, recognised by its keys: query -> /v1/score, context -> /v1/loglikelihood,
//   labels or task -> /v1/classify, prompt -> /v1/completions, input -> /v1/embeddings
absl::StatusOr<ScoreLine> ReadScoreLine(std::string_view text, int64_t line_number);

// The id that a line has even if it is broken.
std::string DefaultLineId(int64_t line_number);

// An output line (with its newline) around an answer, and around a problem with the line itself.
std::string WriteAnswerLine(std::string_view id,
                            int64_t line_number,
                            const gateway::Response& response);
std::string WriteProblemLine(std::string_view id, int64_t line_number, const absl::Status& problem);

// The custom_id of an output line; empty if it is none.
std::string ReadAnswerId(std::string_view line);

}  // namespace zp::apps
