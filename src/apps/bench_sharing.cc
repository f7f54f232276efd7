#include "apps/bench_sharing.h"

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "apps/command.h"
#include "apps/request_lines.h"
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

absl::StatusOr<std::vector<protocol::Sequence>> ReadSequences(const std::string& path,
                                                              const text::Tokenizer& tokenizer) {
  std::vector<protocol::Sequence> sequences;
  const auto take = [&](const RequestLine& request) {
    protocol::Sequence sequence;
    sequence.tokens = request.Tokens(tokenizer);
    if (!sequence.tokens.empty()) {
      sequences.push_back(std::move(sequence));
    }
    return absl::OkStatus();
  };
  ZP_RETURN_IF_ERROR(ForEachRequestLine(path, take));
  return sequences;
}

absl::Status RunSharing(const SharingOptions& options) {
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer,
                      text::Tokenizer::Load(options.tokenizer));
  ZP_ASSIGN_OR_RETURN(const std::vector<protocol::Sequence> sequences,
                      ReadSequences(options.requests, *tokenizer));
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
                   "JSON lines with context and continuation, also .xz; - is standard input")
      ->required();
  command->add_option("--tokenizer", options->tokenizer, "A tokenizer.json")->required();
  command->add_option("--batch-tokens", options->batch_tokens, "Tokens per pass, before sharing")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([options] { ExitOnError(RunSharing(*options)); });
}

}  // namespace zp::apps
