#include "planner/trace.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "fmt/format.h"
#include "protocol/block_chain.h"

namespace zp::planner {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): content and place in, well mixed bits out.
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

void AppendTokens(const TracePrompt& prompt,
                  int32_t vocab_count,
                  std::vector<spec::TokenId>& tokens) {
  for (const ContentRun& run : prompt.runs) {
    const uint64_t base = Mix(run.content);
    for (int32_t i = 0; i < run.token_count; ++i) {
      tokens.push_back(static_cast<spec::TokenId>(Mix(base + i) % vocab_count));
    }
  }
  for (const spec::TokenId token : prompt.tokens) {
    tokens.push_back(token % vocab_count);
  }
}

// Draws from a seed, the same on every machine.
class Dice {
 public:
  explicit Dice(uint64_t seed) : generator_(seed) {}

  uint64_t Content() { return generator_(); }
  // [0, 1)
  double Uniform() { return static_cast<double>(generator_() >> 11) * 0x1p-53; }
  // Both ends included.
  int32_t Between(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(Uniform() * (high - low + 1));
  }
  int32_t LogBetween(int32_t low, int32_t high) {
    return static_cast<int32_t>(low * std::pow(static_cast<double>(high) / low, Uniform()));
  }
  double Exponential() { return -std::log1p(-Uniform()); }

 private:
  std::mt19937_64 generator_;
};

using Prompts = std::vector<TracePrompt>;

// What clients send one after the other, as one request each.
using Session = std::function<std::vector<Prompts>(Dice&)>;

// What prompts may begin with.
std::vector<ContentRun> MakeTasks(int32_t count, int32_t low, int32_t high, Dice& dice) {
  std::vector<ContentRun> tasks(count);
  for (ContentRun& task : tasks) {
    task = {dice.Content(), dice.Between(low, high)};
  }
  return tasks;
}

const ContentRun& AnyOf(const std::vector<ContentRun>& tasks, Dice& dice) {
  return tasks[dice.Between(0, static_cast<int32_t>(tasks.size()) - 1)];
}

Session FewShot(Dice& dice) {
  return [tasks = MakeTasks(5, 700, 1100, dice)](Dice& dice) {
    const ContentRun question = {dice.Content(), dice.Between(60, 320)};
    const ContentRun& task = AnyOf(tasks, dice);
    std::vector<Prompts> requests(dice.Between(2, 4));
    for (Prompts& prompts : requests) {
      prompts.push_back({.runs = {task, question, {dice.Content(), dice.Between(1, 6)}}});
    }
    return requests;
  };
}

Session Documents(Dice& dice) {
  return [tasks = MakeTasks(8, 100, 500, dice)](Dice& dice) {
    if (dice.Uniform() >= 0.1) {
      const ContentRun& task = AnyOf(tasks, dice);
      return std::vector<Prompts>{
          {TracePrompt{.runs = {task, {dice.Content(), dice.Between(40, 400)}}}}};
    }
    const ContentRun document = {dice.Content(), 8192};
    std::vector<Prompts> requests(dice.Between(1, 4));
    for (Prompts& prompts : requests) {
      prompts.push_back({.runs = {document, {dice.Content(), dice.Between(20, 60)}}});
    }
    return requests;
  };
}

Session Rerank(Dice&) {
  return [](Dice& dice) {
    const ContentRun query = {dice.Content(), dice.Between(40, 120)};
    Prompts prompts(dice.Between(4, 24));
    for (TracePrompt& prompt : prompts) {
      prompt.runs = {query, {dice.Content(), dice.Between(80, 400)}};
    }
    return std::vector<Prompts>{prompts};
  };
}

// One dialogue; its turns are far apart among those of others (GenerateTrace mixes them).
Session Conversation(Dice& dice) {
  const ContentRun system = {dice.Content(), 600};
  return [system](Dice& dice) {
    std::vector<ContentRun> said = {system};
    std::vector<Prompts> requests(dice.Between(1, 8));
    for (Prompts& prompts : requests) {
      said.push_back({dice.Content(), dice.LogBetween(30, 3000)});  // the question
      prompts.push_back({.runs = said});
      said.push_back({dice.Content(), dice.LogBetween(50, 800)});  // its answer
    }
    return requests;
  };
}

Session Uneven(Dice&) {
  return [](Dice& dice) {
    return std::vector<Prompts>{
        {TracePrompt{.runs = {{dice.Content(), dice.LogBetween(64, 16384)}}}}};
  };
}

Session LongTail(Dice&) {
  return [](Dice& dice) {
    return std::vector<Prompts>{
        {TracePrompt{.runs = {{dice.Content(), dice.Uniform() < 0.01 ? 16384 : 256}}}}};
  };
}

// Sessions that run side by side: each next request is that of any of them.
std::vector<Prompts> Interleave(const Session& next_session,
                                int32_t open_sessions,
                                int32_t request_count,
                                Dice& dice) {
  std::vector<std::vector<Prompts>> open;  // each reversed: the next request is the last
  std::vector<Prompts> requests;
  while (static_cast<int32_t>(requests.size()) < request_count) {
    while (static_cast<int32_t>(open.size()) < open_sessions) {
      open.push_back(next_session(dice));
      std::ranges::reverse(open.back());
    }
    std::vector<Prompts>& session = open[dice.Between(0, open_sessions - 1)];
    requests.push_back(std::move(session.back()));
    session.pop_back();
    if (session.empty()) {
      std::swap(session, open.back());
      open.pop_back();
    }
  }
  return requests;
}

struct Generator {
  Session (*make)(Dice&);
  int32_t open_sessions;  // at a time
};

const std::map<std::string, Generator>& Generators() {
  static const auto* const generators =
      new std::map<std::string, Generator>{{"few-shot", {FewShot, 4}},
                                           {"documents", {Documents, 8}},
                                           {"rerank", {Rerank, 1}},
                                           {"conversation", {Conversation, 200}},
                                           {"uneven", {Uneven, 1}},
                                           {"long-tail", {LongTail, 1}}};
  return *generators;
}

}  // namespace

int64_t TracePrompt::token_count() const {
  auto count = static_cast<int64_t>(tokens.size());
  for (const ContentRun& run : runs) {
    count += run.token_count;
  }
  return count;
}

int64_t TraceRequest::token_count() const {
  int64_t count = 0;
  for (const TracePrompt& prompt : prompts) {
    count += prompt.token_count();
  }
  return count;
}

int64_t Trace::token_count() const {
  int64_t count = 0;
  for (const TraceRequest& request : requests) {
    count += request.token_count();
  }
  return count;
}

protocol::Work MakeWork(const TraceRequest& request,
                        const std::string& request_id,
                        int32_t vocab_count,
                        int32_t max_prompt_tokens) {
  protocol::Work work{.request_id = request_id};
  for (const TracePrompt& prompt : request.prompts) {
    protocol::Sequence& sequence = work.sequences.emplace_back();
    sequence.tokens.reserve(prompt.token_count());
    AppendTokens(prompt, vocab_count, sequence.tokens);
    sequence.tokens.resize(
        std::min<size_t>(sequence.tokens.size(), static_cast<size_t>(max_prompt_tokens)));
    sequence.rows.push_back(
        {.position = static_cast<int32_t>(sequence.tokens.size()) - 1, .columns = {0, 1}});
  }
  return work;
}

double IdealHitRate(const Trace& trace) {
  constexpr int32_t kVocabulary = 1 << 30;  // tokens as different as the contents
  const protocol::BlockHasher hasher(/*key=*/0);
  absl::flat_hash_set<protocol::BlockHash> seen;
  int64_t hit_tokens = 0;
  int64_t all_tokens = 0;
  std::vector<spec::TokenId> tokens;
  for (const TraceRequest& request : trace.requests) {
    for (const TracePrompt& prompt : request.prompts) {
      tokens.clear();
      AppendTokens(prompt, kVocabulary, tokens);
      all_tokens += static_cast<int64_t>(tokens.size());
      for (const protocol::BlockHash& block : hasher.Chain("", tokens)) {
        hit_tokens += seen.insert(block).second ? 0 : protocol::kBlockTokens;
      }
    }
  }
  return all_tokens == 0 ? 0 : static_cast<double>(hit_tokens) / static_cast<double>(all_tokens);
}

Trace MixTraces(const std::string& name, std::vector<Trace> traces) {
  std::vector<std::pair<double, TraceRequest*>> order;  // by its place in its own trace
  for (Trace& trace : traces) {
    const auto count = static_cast<double>(trace.requests.size());
    for (size_t i = 0; i < trace.requests.size(); ++i) {
      order.emplace_back((static_cast<double>(i) + 0.5) / count, &trace.requests[i]);
    }
  }
  std::ranges::stable_sort(order, {}, [](const auto& one) { return one.first; });
  Trace mix{.name = name};
  for (const auto& [place, request] : order) {
    request->arrival_s = static_cast<double>(mix.requests.size());
    mix.requests.push_back(std::move(*request));
  }
  return mix;
}

absl::StatusOr<Trace> GenerateTrace(const std::string& name, int32_t request_count, uint64_t seed) {
  const auto found = Generators().find(name);
  if (found == Generators().end()) {
    std::string names;
    for (const auto& [known, generator] : Generators()) {
      names += (names.empty() ? "" : ", ") + known;
    }
    return absl::InvalidArgumentError(
        fmt::format("'{}' is no trace; those made from a seed are {}", name, names));
  }
  Dice dice(seed);
  const Session session = found->second.make(dice);
  Trace trace{.name = name};
  double now_s = 0;
  for (Prompts& prompts : Interleave(session, found->second.open_sessions, request_count, dice)) {
    now_s += dice.Exponential();
    trace.requests.push_back({.arrival_s = now_s, .prompts = std::move(prompts)});
  }
  return trace;
}

}  // namespace zp::planner
