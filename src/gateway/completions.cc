#include <algorithm>
#include <memory>
#include <optional>
#include <span>

#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/endpoints.h"
#include "gateway/errors.h"
#include "gateway/json_text.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;
using scoring::EchoAnswer;
using scoring::EchoQuestion;
using scoring::LabelAnswer;
using scoring::LabelQuestion;
using scoring::TokenLogProb;
using scoring::Tokens;

struct Options {
  bool echo = false;
  bool next_token = false;  // max_tokens is 1
  std::optional<int32_t> logprobs;
  Tokens logprob_tokens;  // exactly these in top_logprobs of the next token
};

// What each prompt of the request is asked: its own tokens and the next one, and where the client
// named tokens, those too. Both sequences hold the same tokens, so the pass computes them once.
struct Choice {
  EchoQuestion echo;
  std::optional<LabelQuestion> labels;
};

struct Completions {
  const ServedModel* model = nullptr;
  std::string id;
  int64_t created_seconds = 0;
  Options options;
  std::vector<Choice> choices;
};

void RefuseUnsupported(Fields& fields) {
  constexpr std::string_view kOnePass = "every answer is read from one forward pass";
  fields.Unsupported("stream", kOnePass);
  fields.Unsupported("n", kOnePass, 1);
  fields.Unsupported("best_of", kOnePass, 1);
  fields.Unsupported("suffix", kOnePass);
  fields.Unsupported("prompt_logprobs", "ask with echo and logprobs");
  for (const std::string_view field : {"logit_bias",
                                       "allowed_token_ids",
                                       "presence_penalty",
                                       "frequency_penalty",
                                       "truncate_prompt_tokens"}) {
    fields.Unsupported(field, "answers are the model's own log-probabilities");
  }
  fields.Number("temperature");
}

Options ReadOptions(Fields& fields, const ServedModel& model) {
  Options options;
  options.echo = fields.Bool("echo", false);
  const int64_t max_tokens = fields.Integer("max_tokens", {0, INT32_MAX}, 16);
  if (max_tokens > 1) {
    fields.Fail(
        "max_tokens",
        fmt::format("must be 0 or 1, not {}: this server reads answers from the prompt's "
                    "forward pass and generates nothing",
                    fields.Has("max_tokens") ? std::to_string(max_tokens) : "the default of 16"));
  }
  options.next_token = max_tokens == 1;
  if (!options.echo && !options.next_token) {
    fields.Fail("max_tokens", "must be 1 where echo is false: 0 would ask for nothing");
  }
  if (fields.Has("logprobs")) {
    options.logprobs =
        static_cast<int32_t>(fields.Integer("logprobs", {0, model.limits().max_logprobs}, 0));
  }
  if (fields.Has("logprob_token_ids")) {
    options.logprob_tokens =
        fields.TokenIds("logprob_token_ids", model.limits().max_labels, model.spec().vocab_count);
    if (options.echo || !options.logprobs.has_value()) {
      fields.Fail("logprob_token_ids", "needs logprobs, max_tokens 1 and echo false");
    }
  }
  return options;
}

int32_t TopCount(const Options& options) {
  // The arg-max is always there: clients find out by it whether a token was the greedy choice.
  return std::max(1, options.logprobs.value_or(0));
}

RequestCost CostOf(const Options& options, int64_t prompt_tokens) {
  const auto named_tokens = static_cast<int64_t>(options.logprob_tokens.size());
  const int64_t sequences = named_tokens == 0 ? 1 : 2;
  const int64_t rows = 1 + (options.echo && options.logprobs.has_value() ? prompt_tokens : 0);
  // Of a row: its own log-probability; of each alternative, token and log-probability.
  return {.sequences = sequences,
          .tokens = sequences * prompt_tokens + named_tokens,
          .answer_numbers = rows * (2 + 2 * TopCount(options)) + named_tokens};
}

absl::Status PlanChoice(Tokens tokens, Completions& completions, protocol::Work& work) {
  const Options& options = completions.options;
  Choice choice;
  choice.echo.tokens = std::move(tokens);
  const bool wants_own = options.echo && options.logprobs.has_value();
  choice.echo.first_position = wants_own ? 1 : static_cast<int32_t>(choice.echo.tokens.size());
  // A sequence must ask for something; where nothing is wanted of it, the next token is not shown.
  const bool has_own = choice.echo.first_position < static_cast<int32_t>(choice.echo.tokens.size());
  choice.echo.next_token = options.next_token || !has_own;
  choice.echo.top_count = TopCount(options);
  ZP_RETURN_IF_ERROR(scoring::PlanEcho(choice.echo, work));
  if (!options.logprob_tokens.empty()) {
    choice.labels.emplace();
    choice.labels->prompt = choice.echo.tokens;
    choice.labels->normalization = scoring::Normalization::kVocabulary;
    for (const scoring::TokenId token : options.logprob_tokens) {
      choice.labels->labels.push_back({token});
    }
    ZP_RETURN_IF_ERROR(scoring::PlanLabels(*choice.labels, work));
  }
  completions.choices.push_back(std::move(choice));
  return absl::OkStatus();
}

// Keyed by the token's text; of two tokens with the same text the likelier one stays.
void AddLogProb(const ServedModel& model, const TokenLogProb& entry, json::object& top) {
  const auto [place, is_new] = top.emplace(model.TokenText(entry.token), entry.log_prob);
  if (!is_new && entry.log_prob > place->value().get_double()) {
    place->value() = entry.log_prob;
  }
}

json::object TopJson(const ServedModel& model, std::span<const TokenLogProb> entries) {
  json::object top;
  for (const TokenLogProb& entry : entries) {
    AddLogProb(model, entry, top);
  }
  return top;
}

// The four parallel arrays of a choice's `logprobs`.
class LogProbArrays {
 public:
  explicit LogProbArrays(const ServedModel& model) : model_(model) {}

  void Add(scoring::TokenId token, json::value log_prob, json::value top) {
    const std::string bytes = model_.tokenizer().TokenBytes(token);
    tokens_.emplace_back(ToValidUtf8(bytes));
    offsets_.emplace_back(characters_);
    log_probs_.emplace_back(std::move(log_prob));
    top_.emplace_back(std::move(top));
    characters_ += CountCharacters(bytes);
  }

  json::object Take() {
    return {{"tokens", std::move(tokens_)},
            {"token_logprobs", std::move(log_probs_)},
            {"top_logprobs", std::move(top_)},
            {"text_offset", std::move(offsets_)}};
  }

 private:
  const ServedModel& model_;
  int64_t characters_ = 0;
  json::array tokens_;
  json::array offsets_;
  json::array log_probs_;
  json::array top_;
};

json::object LogProbsJson(const Completions& completions,
                          const Choice& choice,
                          const EchoAnswer& answer,
                          std::span<const TokenLogProb> named_tokens) {
  const ServedModel& model = *completions.model;
  LogProbArrays arrays(model);
  if (completions.options.echo) {
    arrays.Add(choice.echo.tokens.front(), nullptr, nullptr);
    for (size_t i = 0; i < answer.positions.size(); ++i) {
      const scoring::EchoPosition& position = answer.positions[i];
      const scoring::TokenId token = choice.echo.tokens[i + 1];
      json::object top = TopJson(model, position.top);
      AddLogProb(model, {.token = token, .log_prob = position.log_prob}, top);
      arrays.Add(token, position.log_prob, std::move(top));
    }
  }
  if (completions.options.next_token) {
    const TokenLogProb& best = answer.next.front();
    const std::span<const TokenLogProb> top =
        named_tokens.empty() ? std::span<const TokenLogProb>(answer.next) : named_tokens;
    arrays.Add(best.token, best.log_prob, TopJson(model, top));
  }
  return arrays.Take();
}

std::string ChoiceText(const Completions& completions,
                       const Choice& choice,
                       const EchoAnswer& answer) {
  std::string bytes;
  const text::Tokenizer& tokenizer = completions.model->tokenizer();
  if (completions.options.echo) {
    for (const scoring::TokenId token : choice.echo.tokens) {
      bytes += tokenizer.TokenBytes(token);
    }
  }
  if (completions.options.next_token) {
    bytes += tokenizer.TokenBytes(answer.next.front().token);
  }
  return ToValidUtf8(bytes);
}

absl::StatusOr<std::vector<TokenLogProb>> ReadNamedTokens(const Completions& completions,
                                                          const LabelQuestion& question,
                                                          const protocol::SequenceResult& result) {
  ZP_ASSIGN_OR_RETURN(const LabelAnswer answer, scoring::ReadLabels(question, {&result, 1}));
  std::vector<TokenLogProb> entries;
  for (size_t i = 0; i < answer.log_probs.size(); ++i) {
    entries.push_back(
        {.token = completions.options.logprob_tokens[i], .log_prob = answer.log_probs[i]});
  }
  return entries;
}

absl::StatusOr<json::object> ChoiceJson(const Completions& completions,
                                        size_t index,
                                        std::span<const protocol::SequenceResult> results) {
  const Choice& choice = completions.choices[index];
  ZP_ASSIGN_OR_RETURN(const EchoAnswer answer, scoring::ReadEcho(choice.echo, results[0]));
  std::vector<TokenLogProb> named_tokens;
  if (choice.labels.has_value()) {
    ZP_ASSIGN_OR_RETURN(named_tokens, ReadNamedTokens(completions, *choice.labels, results[1]));
  }
  json::value logprobs = nullptr;
  if (completions.options.logprobs.has_value()) {
    logprobs = LogProbsJson(completions, choice, answer, named_tokens);
  }
  return json::object{{"index", index},
                      {"text", ChoiceText(completions, choice, answer)},
                      {"logprobs", std::move(logprobs)},
                      {"finish_reason", "length"},
                      {"stop_reason", nullptr}};
}

absl::StatusOr<json::object> ReadCompletions(const Completions& completions,
                                             const protocol::WorkResult& result) {
  const size_t sequences_per_choice = completions.options.logprob_tokens.empty() ? 1 : 2;
  if (result.sequences.size() != completions.choices.size() * sequences_per_choice) {
    return absl::InternalError(fmt::format("the worker answered {} sequences for {} prompts",
                                           result.sequences.size(),
                                           completions.choices.size()));
  }
  const std::span<const protocol::SequenceResult> results = result.sequences;
  json::array choices;
  int64_t prompt_tokens = 0;
  for (size_t i = 0; i < completions.choices.size(); ++i) {
    ZP_ASSIGN_OR_RETURN(
        json::object choice,
        ChoiceJson(
            completions, i, results.subspan(i * sequences_per_choice, sequences_per_choice)));
    choices.emplace_back(std::move(choice));
    prompt_tokens += static_cast<int64_t>(completions.choices[i].echo.tokens.size());
  }
  return json::object{{"id", completions.id},
                      {"object", "text_completion"},
                      {"created", completions.created_seconds},
                      {"model", completions.model->name()},
                      {"choices", std::move(choices)},
                      {"usage", UsageJson(prompt_tokens, result.usage)}};
}

}  // namespace

absl::StatusOr<Prepared> PrepareCompletions(const json::object& body,
                                            const RequestContext& context) {
  const ServedModel& model = context.model;
  Fields fields(body);
  ZP_RETURN_IF_ERROR(model.CheckName(fields.String("model", "")));
  auto completions = std::make_shared<Completions>();
  completions->model = &model;
  completions->id = "cmpl-" + context.request_id;
  completions->created_seconds = context.created_seconds;
  completions->options = ReadOptions(fields, model);
  RefuseUnsupported(fields);
  const bool add_special_tokens = fields.Bool("add_special_tokens", true);
  const std::vector<Prompt> prompts =
      fields.Prompts("prompt", model.limits().max_prompts, model.spec().vocab_count);
  ZP_RETURN_IF_ERROR(fields.status());

  Prepared prepared;
  prepared.work.request_id = context.request_id;
  RequestBudget budget(model.limits());
  for (const Prompt& prompt : prompts) {
    ZP_ASSIGN_OR_RETURN(Tokens tokens, model.EncodePrompt(prompt, add_special_tokens));
    ZP_RETURN_IF_ERROR(
        budget.Spend(CostOf(completions->options, static_cast<int64_t>(tokens.size()))));
    ZP_RETURN_IF_ERROR(PlanChoice(std::move(tokens), *completions, prepared.work));
  }
  prepared.read = [completions](const protocol::WorkResult& result) {
    return ReadCompletions(*completions, result);
  };
  return prepared;
}

}  // namespace zp::gateway
