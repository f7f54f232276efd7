#include "apps/bench_sharing.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "apps/command.h"
#include "base/status.h"
#include "boost/json.hpp"
#include "engine/token_trie.h"
#include "fmt/format.h"
#include "ops/kernels.h"
#include "protocol/work.h"
#include "text/tokenizer.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

struct SharingOptions {
  std::string requests;
  std::string tokenizer;
  int64_t batch_tokens = 32768;
};

using Sequences = std::span<const protocol::Sequence* const>;

// Tokens that sharing in whole blocks of 16 would compute: what a prefix cache of blocks could save
// at best.
int64_t DistinctBlockTokens(Sequences sequences) {
  std::vector<const protocol::Sequence*> sorted(sequences.begin(), sequences.end());
  std::ranges::sort(sorted, {}, &protocol::Sequence::tokens);
  int64_t tokens = 0;
  const std::vector<spec::TokenId>* predecessor = nullptr;
  for (const protocol::Sequence* sequence : sorted) {
    int64_t shared = 0;
    if (predecessor != nullptr) {
      shared = std::ranges::mismatch(*predecessor, sequence->tokens).in2 - sequence->tokens.begin();
    }
    tokens += static_cast<int64_t>(sequence->tokens.size()) -
              shared / ops::kKvBlockTokens * ops::kKvBlockTokens;
    predecessor = &sequence->tokens;
  }
  return tokens;
}

// One line of a request file: {"request": {"context": ..., "continuation": ...}} or the inner
// object itself.
absl::StatusOr<protocol::Sequence> ReadSequence(const std::string& line,
                                                int64_t line_number,
                                                const text::Tokenizer& tokenizer) {
  boost::system::error_code error;
  const json::value value = json::parse(line, error);
  const json::object* object = error ? nullptr : value.if_object();
  if (object != nullptr && object->if_contains("request") != nullptr) {
    object = object->at("request").if_object();
  }
  const json::value* context = object == nullptr ? nullptr : object->if_contains("context");
  const json::value* continuation =
      object == nullptr ? nullptr : object->if_contains("continuation");
  if (context == nullptr || !context->is_string() || continuation == nullptr ||
      !continuation->is_string()) {
    return absl::InvalidArgumentError(fmt::format(
        "line {}: expected a JSON object with the strings \"context\" and \"continuation\"",
        line_number));
  }
  protocol::Sequence sequence;
  sequence.tokens = tokenizer.Encode(std::string(context->get_string()), false);
  for (const spec::TokenId token :
       tokenizer.Encode(std::string(continuation->get_string()), false)) {
    sequence.tokens.push_back(token);
  }
  return sequence;
}

absl::StatusOr<std::vector<protocol::Sequence>> ReadSequences(std::istream& lines,
                                                              const text::Tokenizer& tokenizer) {
  std::vector<protocol::Sequence> sequences;
  int64_t line_number = 0;
  for (std::string line; std::getline(lines, line);) {
    ZP_ASSIGN_OR_RETURN(protocol::Sequence sequence, ReadSequence(line, ++line_number, tokenizer));
    if (!sequence.tokens.empty()) {
      sequences.push_back(std::move(sequence));
    }
  }
  return sequences;
}

absl::Status RunSharing(const SharingOptions& options) {
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer,
                      text::Tokenizer::Load(options.tokenizer));
  std::ifstream file(options.requests);
  if (options.requests != "-" && !file) {
    return absl::NotFoundError(fmt::format("cannot read {}", options.requests));
  }
  ZP_ASSIGN_OR_RETURN(const std::vector<protocol::Sequence> sequences,
                      ReadSequences(options.requests == "-" ? std::cin : file, *tokenizer));
  std::vector<const protocol::Sequence*> all;
  all.reserve(sequences.size());
  for (const protocol::Sequence& sequence : sequences) {
    all.push_back(&sequence);
  }
  int64_t asked = 0, computed = 0, distinct_in_batch = 0, batches = 0;
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    int64_t tokens = 0;
    while (end < all.size() &&
           (end == begin || tokens + std::ssize(all[end]->tokens) <= options.batch_tokens)) {
      tokens += std::ssize(all[end++]->tokens);
    }
    const Sequences batch = Sequences(all).subspan(begin, end - begin);
    asked += tokens;
    computed += engine::BuildTokenTrie(batch).batch.row_count();
    distinct_in_batch += DistinctBlockTokens(batch);
    ++batches;
  }
  const int64_t distinct = DistinctBlockTokens(all);
  const json::object line = {
      {"bench", "sharing"},
      {"requests", all.size()},
      {"batches", batches},
      {"batch_tokens", options.batch_tokens},
      {"asked_tokens", asked},
      {"computed_tokens", computed},
      {"distinct_block_tokens_in_batch", distinct_in_batch},
      {"distinct_block_tokens", distinct},
      {"redundancy_in_batch",
       static_cast<double>(computed) / static_cast<double>(distinct_in_batch)},
      {"redundancy", static_cast<double>(computed) / static_cast<double>(distinct)},
      {"sharing", static_cast<double>(asked) / static_cast<double>(computed)}};
  fmt::print("{}\n", json::serialize(line));
  return absl::OkStatus();
}

}  // namespace

void AddBenchSharingCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "sharing",
      "Tokens computed against distinct tokens asked, over a file of requests; needs no model");
  const auto options = std::make_shared<SharingOptions>();
  command
      ->add_option("requests",
                   options->requests,
                   "JSON lines with context and continuation; - is standard input")
      ->required();
  command->add_option("--tokenizer", options->tokenizer, "A tokenizer.json")->required();
  command->add_option("--batch-tokens", options->batch_tokens, "Tokens per pass, before sharing")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([options] { ExitOnError(RunSharing(*options)); });
}

}  // namespace zp::apps
