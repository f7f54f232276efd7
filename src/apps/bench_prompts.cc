#include "apps/bench_prompts.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <utility>

#include "boost/json.hpp"
#include "fmt/format.h"

namespace zp::apps {

std::vector<protocol::Work> RandomPrompts(int64_t tokens,
                                          int64_t prompt_tokens,
                                          int32_t vocab_count,
                                          uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<spec::TokenId> any_token(0, vocab_count - 1);
  std::vector<protocol::Work> works;
  for (int64_t begin = 0; begin < tokens; begin += prompt_tokens) {
    protocol::Sequence sequence;
    for (int64_t i = 0; i < prompt_tokens; ++i) {
      sequence.tokens.push_back(any_token(random));
    }
    sequence.tokens[0] = static_cast<spec::TokenId>(works.size());
    sequence.rows.push_back({.position = static_cast<int32_t>(prompt_tokens) - 1,
                             .columns = {},
                             .full_vocabulary = true,
                             .top_count = 1});
    works.push_back({.request_id = "bench", .sequences = {std::move(sequence)}});
  }
  return works;
}

std::vector<const protocol::Work*> PointersTo(const std::vector<protocol::Work>& works) {
  std::vector<const protocol::Work*> batch;
  batch.reserve(works.size());
  for (const protocol::Work& work : works) {
    batch.push_back(&work);
  }
  return batch;
}

boost::json::object RatioOf(const std::vector<double>& over, const std::vector<double>& under) {
  std::vector<double> ratios;
  for (size_t round = 0; round < std::min(over.size(), under.size()); ++round) {
    ratios.push_back(over[round] / under[round]);
  }
  const auto [low, high] = std::ranges::minmax(ratios);
  return {{"median", Median(ratios)}, {"low", low}, {"high", high}};
}

double Quantile(std::vector<double> values, double fraction) {
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(values.size())));
  const size_t index = std::clamp<size_t>(rank, 1, values.size()) - 1;
  std::ranges::nth_element(values, values.begin() + static_cast<int64_t>(index));
  return values[index];
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void PrintCase(const boost::json::object& line, bool as_json) {
  if (as_json) {
    fmt::print("{}\n", boost::json::serialize(line));
  } else {
    for (const auto& [key, value] : line) {
      fmt::print("  {:<24} {}\n", std::string(key), boost::json::serialize(value));
    }
  }
  std::fflush(stdout);
}

}  // namespace zp::apps
