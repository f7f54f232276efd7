// A model for tests: each prefix of tokens hashes to its own logits. Plain loops, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "protocol/work.h"
#include "scoring/scoring.h"

namespace zp::scoring {

class FakeModel {
 public:
  static constexpr int32_t kVocabCount = 23;

  static std::vector<float> Logits(std::span<const TokenId> prefix) {
    std::seed_seq seed(prefix.begin(), prefix.end());
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> logit(-4.0f, 4.0f);
    std::vector<float> logits(kVocabCount);
    std::generate(logits.begin(), logits.end(), [&] { return logit(random); });
    return logits;
  }

  static double LogSumExp(const std::vector<float>& logits) {
    double sum = 0;
    for (const float logit : logits) {
      sum += std::exp(static_cast<double>(logit));
    }
    return std::log(sum);
  }

  // log P(tokens | prefix), token by token.
  static double LogProb(Tokens prefix, const Tokens& tokens) {
    double sum = 0;
    for (const TokenId token : tokens) {
      const std::vector<float> logits = Logits(prefix);
      sum += logits[token] - LogSumExp(logits);
      prefix.push_back(token);
    }
    return sum;
  }

  static TokenId ArgMax(std::span<const TokenId> prefix) {
    const std::vector<float> logits = Logits(prefix);
    return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }

  static std::vector<protocol::SequenceResult> Run(const protocol::Work& work) {
    std::vector<protocol::SequenceResult> results;
    for (const protocol::Sequence& sequence : work.sequences) {
      protocol::SequenceResult& result = results.emplace_back();
      for (const protocol::RowAsk& ask : sequence.rows) {
        result.rows.push_back(Answer(ask, std::span(sequence.tokens).first(ask.position + 1)));
      }
    }
    return results;
  }

 private:
  static protocol::Row Answer(const protocol::RowAsk& ask, std::span<const TokenId> prefix) {
    const std::vector<float> logits = Logits(prefix);
    protocol::Row row;
    for (const TokenId column : ask.columns) {
      row.column_logits.push_back(logits[column]);
    }
    if (!ask.full_vocabulary) {
      return row;
    }
    row.log_sum_exp = static_cast<float>(LogSumExp(logits));
    std::vector<protocol::TokenLogit> ranked;
    ranked.reserve(kVocabCount);
    for (TokenId token = 0; token < kVocabCount; ++token) {
      ranked.push_back({.token = token, .logit = logits[token]});
    }
    std::stable_sort(ranked.begin(), ranked.end(), [](const auto& left, const auto& right) {
      return left.logit > right.logit;
    });
    row.top.assign(ranked.begin(), ranked.begin() + ask.top_count);
    return row;
  }
};

}  // namespace zp::scoring
