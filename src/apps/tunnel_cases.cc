#include "apps/tunnel_cases.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

using Random = std::mt19937_64;
// A prompt's tokens, where so many are left to the pass.
using DrawLength = std::function<int64_t(Random&, int64_t left)>;

constexpr int kUnevenPasses = 3;
constexpr int64_t kEvenPromptTokens = 256;
constexpr int64_t kShortestUnevenTokens = 16;
constexpr int64_t kLongestUnevenTokens = 8192;
// Added to the tokens of a file for every time that it is gone through again: odd and near half the
// vocabulary, so that no token keeps its number.
constexpr int64_t kRenumbering = 4099;

int64_t SharedWith(const Prompt& a, const Prompt& b) {
  return std::ranges::mismatch(a, b).in1 - a.begin();
}

// Prompts that begin with different tokens (while the vocabulary lasts), until the pass has at
// least the size asked.
TunnelPass RandomPass(Random& random,
                      int64_t tokens,
                      int32_t vocab_count,
                      const DrawLength& draw_length) {
  TunnelPass pass;
  for (int64_t made = 0; made < tokens;) {
    Prompt prompt(draw_length(random, tokens - made));
    for (spec::TokenId& token : prompt) {
      token = static_cast<spec::TokenId>(random() % vocab_count);
    }
    prompt[0] = static_cast<spec::TokenId>(pass.prompts.size() % vocab_count);
    made += std::ssize(prompt);
    pass.prompts.push_back(std::move(prompt));
  }
  return pass;
}

// Every rank has a sequence of random numbers of its own: what one is given changes no other's.
Random RandomOf(int32_t rank) { return Random(1 + rank); }

void CountAll(TunnelWork& work) {
  double position_sum = 0;
  int64_t tokens = 0;
  for (std::vector<TunnelPass>& queue : work.queues) {
    for (TunnelPass& pass : queue) {
      DistinctTokens distinct;
      for (const Prompt& prompt : pass.prompts) {
        distinct.Add(prompt);
        work.asked_tokens += std::ssize(prompt);
      }
      pass.tokens = distinct.count();
      tokens += distinct.count();
      position_sum += distinct.mean_context() * static_cast<double>(distinct.count());
    }
  }
  work.mean_context = tokens == 0 ? 0 : position_sum / static_cast<double>(tokens);
}

TunnelWork EvenWork(const spec::ModelSpec& spec,
                    const std::vector<int64_t>& rank_tokens,
                    int64_t prompt_tokens) {
  TunnelWork work;
  for (int32_t rank = 0; rank < static_cast<int32_t>(rank_tokens.size()); ++rank) {
    Random random = RandomOf(rank);
    std::vector<TunnelPass>& queue = work.queues.emplace_back();
    if (rank_tokens[rank] > 0) {
      queue.push_back(
          RandomPass(random, rank_tokens[rank], spec.vocab_count, [&](Random&, int64_t) {
            return prompt_tokens;
          }));
    }
  }
  return work;
}

TunnelWork UnevenWork(const spec::ModelSpec& spec,
                      int32_t ranks,
                      int64_t pass_tokens,
                      int64_t longest_tokens) {
  const auto draw_length = [&](Random& random, int64_t left) {
    std::uniform_real_distribution<double> exponents(
        std::log2(static_cast<double>(kShortestUnevenTokens)),
        std::log2(static_cast<double>(longest_tokens)));
    return std::min(static_cast<int64_t>(std::exp2(exponents(random))), left);
  };
  TunnelWork work;
  for (int32_t rank = 0; rank < ranks; ++rank) {
    Random random = RandomOf(rank);
    std::vector<TunnelPass>& queue = work.queues.emplace_back();
    for (int pass = 0; pass < kUnevenPasses; ++pass) {
      const double scale = std::uniform_real_distribution<double>(0.7, 1.3)(random);
      const auto tokens = std::max<int64_t>(
          1, static_cast<int64_t>(std::llround(scale * static_cast<double>(pass_tokens))));
      queue.push_back(RandomPass(random, tokens, spec.vocab_count, draw_length));
    }
  }
  return work;
}

// Of "uneven" and "uneven-N"; 0: it is no such case.
int64_t LongestUneven(const std::string& name, const spec::ModelSpec& spec) {
  const int64_t most = spec.max_position_count;
  if (name == "uneven") {
    return std::min(kLongestUnevenTokens, most);
  }
  int64_t tokens = 0;
  return absl::StartsWith(name, "uneven-") && absl::SimpleAtoi(name.substr(7), &tokens) &&
                 tokens > kShortestUnevenTokens && tokens <= most
             ? tokens
             : 0;
}

Prompt Folded(const Prompt& prompt, int32_t repeat, int32_t vocab_count) {
  Prompt folded;
  folded.reserve(prompt.size());
  for (const spec::TokenId token : prompt) {
    folded.push_back(
        static_cast<spec::TokenId>((int64_t{token} + repeat * kRenumbering) % vocab_count));
  }
  return folded;
}

absl::Status CheckGroups(const std::vector<PromptGroup>& groups, const spec::ModelSpec& spec) {
  for (const PromptGroup& group : groups) {
    for (const Prompt& prompt : group) {
      if (prompt.empty() || std::ssize(prompt) > spec.max_position_count) {
        return absl::InvalidArgumentError(fmt::format(
            "a prompt has {} tokens; 1 to {} will do", prompt.size(), spec.max_position_count));
      }
    }
  }
  if (groups.empty()) {
    return absl::InvalidArgumentError("there are no requests");
  }
  return absl::OkStatus();
}

}  // namespace

// In sorted order one of the two neighbours shares the longest prefix.
int64_t DistinctTokens::Add(const Prompt& prompt) {
  const auto [place, is_new] = prompts_.insert(prompt);
  const int64_t length = std::ssize(prompt);
  int64_t shared = is_new ? 0 : length;
  if (is_new && place != prompts_.begin()) {
    shared = SharedWith(*std::prev(place), prompt);
  }
  if (is_new && std::next(place) != prompts_.end()) {
    shared = std::max(shared, SharedWith(*std::next(place), prompt));
  }
  const int64_t added = length - shared;
  count_ += added;
  position_sum_ += static_cast<double>(added) * static_cast<double>(shared + length - 1) / 2;
  return added;
}

int32_t TunnelWork::pass_count() const {
  size_t most = 0;
  for (const std::vector<TunnelPass>& queue : queues) {
    most = std::max(most, queue.size());
  }
  return static_cast<int32_t>(most);
}

int64_t TunnelWork::rank_tokens(int32_t rank) const {
  int64_t tokens = 0;
  for (const TunnelPass& pass : queues[rank]) {
    tokens += pass.tokens;
  }
  return tokens;
}

int64_t TunnelWork::smallest_pass() const {
  int64_t smallest = 0;
  for (const std::vector<TunnelPass>& queue : queues) {
    for (const TunnelPass& pass : queue) {
      smallest = smallest == 0 ? pass.tokens : std::min(smallest, pass.tokens);
    }
  }
  return smallest;
}

absl::StatusOr<TunnelWork> MakeWork(const std::string& name,
                                    const spec::ModelSpec& spec,
                                    int32_t ranks,
                                    int64_t pass_tokens) {
  TunnelWork work;
  std::vector<int64_t> rank_tokens(ranks, pass_tokens);
  int64_t prompt_tokens = 0;
  if (const int64_t longest_tokens = LongestUneven(name, spec); longest_tokens > 0) {
    work = UnevenWork(spec, ranks, pass_tokens, longest_tokens);
  } else if (name == "idle" || name == "double") {
    rank_tokens.back() *= name == "idle" ? 0 : 2;
    work = EvenWork(spec, rank_tokens, kEvenPromptTokens);
    work.odd_rank = ranks - 1;
    work.even_case = std::to_string(kEvenPromptTokens);
  } else if (absl::SimpleAtoi(name, &prompt_tokens) && prompt_tokens >= 1 &&
             prompt_tokens <= spec.max_position_count) {
    work = EvenWork(spec, rank_tokens, prompt_tokens);
  } else {
    return absl::InvalidArgumentError(
        fmt::format("case '{}' is none of: a prompt's tokens (1 to {}), uneven, uneven-N (prompts "
                    "of {} to N), idle, double, NAME=FILE",
                    name,
                    spec.max_position_count,
                    kShortestUnevenTokens));
  }
  CountAll(work);
  return work;
}

absl::StatusOr<TunnelWork> DealGroups(const std::vector<PromptGroup>& groups,
                                      const spec::ModelSpec& spec,
                                      int32_t ranks,
                                      int64_t pass_tokens) {
  ZP_RETURN_IF_ERROR(CheckGroups(groups, spec));
  TunnelWork work;
  work.queues.assign(ranks, std::vector<TunnelPass>(1));
  std::vector<DistinctTokens> distinct(ranks);
  int32_t full_count = 0;
  int32_t rank = 0;
  size_t next = 0;
  // A file that is gone through as often as the vocabulary has numbers brings nothing new.
  while (full_count < ranks && work.file_repeats < spec.vocab_count) {
    while (distinct[rank].count() >= pass_tokens) {
      rank = (rank + 1) % ranks;
    }
    for (const Prompt& prompt : groups[next]) {
      Prompt folded = Folded(prompt, work.file_repeats, spec.vocab_count);
      distinct[rank].Add(folded);
      work.queues[rank][0].prompts.push_back(std::move(folded));
    }
    full_count += distinct[rank].count() >= pass_tokens ? 1 : 0;
    rank = (rank + 1) % ranks;
    if (++next == groups.size()) {
      next = 0;
      ++work.file_repeats;
    }
  }
  if (next == 0) {
    --work.file_repeats;  // it was just through
  }
  CountAll(work);
  return work;
}

}  // namespace zp::apps
