// Random prompts for benchmarks, and how their cases and rounds are told.
#pragma once

#include <cstdint>
#include <vector>

#include "boost/json/object.hpp"
#include "protocol/work.h"

namespace zp::apps {

// `tokens` tokens in prompts of `prompt_tokens`, each with another first token: nothing is shared.
// The last token's most likely successor is asked, as llama-bench asks it.
std::vector<protocol::Work> RandomPrompts(int64_t tokens,
                                          int64_t prompt_tokens,
                                          int32_t vocab_count,
                                          uint64_t seed);

std::vector<const protocol::Work*> PointersTo(const std::vector<protocol::Work>& works);

double Median(std::vector<double> values);
// The smallest value that this fraction of them does not exceed. REQUIRES: not empty.
double Quantile(std::vector<double> values, double fraction);

// {"median", "low", "high"} of over / under, round by round, so that what changes between rounds
// cancels.
boost::json::object RatioOf(const std::vector<double>& over, const std::vector<double>& under);

// One JSON line, or a line for each field.
void PrintCase(const boost::json::object& line, bool as_json);

}  // namespace zp::apps
