#include <memory>

#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/endpoints.h"
#include "gateway/errors.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;
using scoring::ContinuationAnswer;
using scoring::ContinuationQuestion;
using scoring::Tokens;

struct Continuations {
  std::vector<ContinuationQuestion> questions;
  int64_t prompt_tokens = 0;
};

// Context and continuation are tokenized together and cut where the context alone ends, with the
// white space between them on the continuation's side: so do evaluation harnesses.
absl::StatusOr<ContinuationQuestion> Split(std::string_view context_text,
                                           std::string_view field,
                                           std::string_view continuation,
                                           const ServedModel& model) {
  const size_t end = context_text.find_last_not_of(" \t\r\n");
  const std::string_view context =
      context_text.substr(0, end == std::string_view::npos ? 0 : end + 1);
  ZP_ASSIGN_OR_RETURN(Tokens prompt, model.EncodePrompt("context", context));
  ZP_ASSIGN_OR_RETURN(
      Tokens whole,
      model.EncodePrompt(
          field,
          fmt::format("{}{}{}", context, context_text.substr(context.size()), continuation)));
  if (continuation.empty() || whole.size() <= prompt.size()) {
    return FieldError(field, "is empty: it adds no tokens to the context");
  }
  ContinuationQuestion question;
  const auto cut = whole.begin() + static_cast<int64_t>(prompt.size());
  question.prompt.assign(whole.begin(), cut);
  question.continuation.assign(cut, whole.end());
  return question;
}

json::object AnswerJson(size_t index, const ContinuationAnswer& answer) {
  json::array token_log_probs;
  for (const double log_prob : answer.token_log_probs) {
    token_log_probs.emplace_back(log_prob);
  }
  return {{"index", index},
          {"log_prob", answer.log_prob},
          {"token_log_probs", std::move(token_log_probs)},
          {"is_greedy", answer.is_greedy}};
}

absl::StatusOr<json::array> ReadAnswers(const Continuations& continuations,
                                        const protocol::WorkResult& result) {
  if (result.sequences.size() != continuations.questions.size()) {
    return absl::InternalError(fmt::format("the worker answered {} sequences where {} were asked",
                                           result.sequences.size(),
                                           continuations.questions.size()));
  }
  json::array data;
  for (size_t i = 0; i < continuations.questions.size(); ++i) {
    ZP_ASSIGN_OR_RETURN(const ContinuationAnswer answer,
                        scoring::ReadContinuation(continuations.questions[i], result.sequences[i]));
    data.emplace_back(AnswerJson(i, answer));
  }
  return data;
}

}  // namespace

absl::StatusOr<Prepared> PrepareLoglikelihood(const json::object& body,
                                              const RequestContext& context) {
  const ServedModel& model = context.model;
  Fields fields(body);
  ZP_RETURN_IF_ERROR(model.CheckName(fields.String("model", "")));
  const std::string_view context_text = fields.String("context", "");
  const std::string_view field = fields.OneOf({"continuation", "continuations"});
  const std::vector<std::string_view> texts = fields.Strings(field, model.limits().max_labels);
  ZP_RETURN_IF_ERROR(fields.status());

  Prepared prepared;
  prepared.work.request_id = context.request_id;
  auto continuations = std::make_shared<Continuations>();
  RequestBudget budget(model.limits());
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string name =
        texts.size() == 1 ? std::string(field) : fmt::format("{}[{}]", field, i);
    ZP_ASSIGN_OR_RETURN(ContinuationQuestion question, Split(context_text, name, texts[i], model));
    const auto continuation_tokens = static_cast<int64_t>(question.continuation.size());
    ZP_RETURN_IF_ERROR(
        budget.Spend({.sequences = 1,
                      .tokens = static_cast<int64_t>(question.prompt.size()) + continuation_tokens,
                      .answer_numbers = 4 * continuation_tokens}));
    ZP_RETURN_IF_ERROR(scoring::PlanContinuation(question, prepared.work));
    continuations->prompt_tokens +=
        static_cast<int64_t>(prepared.work.sequences.back().tokens.size());
    continuations->questions.push_back(std::move(question));
  }
  prepared.read = [continuations, name = model.name()](
                      const protocol::WorkResult& result) -> absl::StatusOr<json::object> {
    ZP_ASSIGN_OR_RETURN(json::array data, ReadAnswers(*continuations, result));
    return json::object{{"object", "loglikelihood"},
                        {"model", name},
                        {"data", std::move(data)},
                        {"usage", UsageJson(continuations->prompt_tokens, result.usage)}};
  };
  return prepared;
}

}  // namespace zp::gateway
