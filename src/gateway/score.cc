#include <cmath>
#include <memory>

#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/endpoints.h"
#include "gateway/errors.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;
using scoring::Tokens;

// Query + item, or item + query.
absl::StatusOr<Tokens> BuildPrompt(const Prompt& query,
                                   const Prompt& item,
                                   bool item_first,
                                   const ServedModel& model) {
  if (item.is_tokens != query.is_tokens) {
    return FieldError(item.field, "must be text where query is text, token ids where it is ids");
  }
  const Prompt& first = item_first ? item : query;
  const Prompt& second = item_first ? query : item;
  if (!query.is_tokens) {
    return model.EncodePrompt(item.field, fmt::format("{}{}", first.text, second.text));
  }
  Tokens prompt = first.tokens;
  prompt.insert(prompt.end(), second.tokens.begin(), second.tokens.end());
  ZP_RETURN_IF_ERROR(model.CheckTokenCount(item.field, static_cast<int64_t>(prompt.size())));
  return prompt;
}

absl::StatusOr<std::vector<Tokens>> ReadLabels(Fields& fields, const ServedModel& model) {
  const std::string_view field = fields.OneOf({"label_token_ids", "labels"});
  const size_t max_labels = model.limits().max_labels;
  if (field == "labels") {
    const std::vector<std::string_view> labels = fields.Strings(field, max_labels);
    ZP_RETURN_IF_ERROR(fields.status());
    return model.EncodeLabels(field, labels);
  }
  std::vector<Tokens> labels;
  for (const scoring::TokenId token :
       fields.TokenIds(field, max_labels, model.spec().vocab_count)) {
    labels.push_back({token});
  }
  ZP_RETURN_IF_ERROR(fields.status());
  return labels;
}

json::object Answer(const std::vector<scoring::LabelAnswer>& answers, const std::string& name) {
  json::array scores;
  for (const scoring::LabelAnswer& answer : answers) {
    json::array& row = scores.emplace_back(json::array()).get_array();
    for (const double log_prob : answer.log_probs) {
      row.emplace_back(std::exp(log_prob));
    }
  }
  return {{"scores", std::move(scores)}, {"model", name}, {"object", "scoring"}};
}

}  // namespace

absl::StatusOr<Prepared> PrepareScore(const json::object& body, const RequestContext& context) {
  const ServedModel& model = context.model;
  Fields fields(body);
  ZP_RETURN_IF_ERROR(model.CheckName(fields.String("model", "")));
  for (const std::string_view field : {"queries", "documents", "text_1", "text_2", "data_1"}) {
    fields.Unsupported(field, "this server takes query, items and label_token_ids (or labels)");
  }
  const bool item_first = fields.Bool("item_first", false);
  const bool apply_softmax = fields.Bool("apply_softmax", false);
  ZP_ASSIGN_OR_RETURN(std::vector<Tokens> labels, ReadLabels(fields, model));
  ZP_RETURN_IF_ERROR(CheckDistinct(fields.Has("labels") ? "labels" : "label_token_ids", labels));
  const int64_t vocab_count = model.spec().vocab_count;
  const std::vector<Prompt> queries = fields.Prompts("query", 1, vocab_count);
  const std::vector<Prompt> items =
      fields.Prompts("items", model.limits().max_prompts, vocab_count);
  ZP_RETURN_IF_ERROR(fields.status());

  Prepared prepared;
  prepared.work.request_id = context.request_id;
  auto batch = std::make_shared<LabelBatch>(
      std::move(labels),
      apply_softmax ? scoring::Normalization::kLabels : scoring::Normalization::kVocabulary,
      model.limits());
  for (const Prompt& item : items) {
    ZP_ASSIGN_OR_RETURN(Tokens prompt, BuildPrompt(queries.front(), item, item_first, model));
    ZP_RETURN_IF_ERROR(model.CheckTokenCount(
        item.field, static_cast<int64_t>(prompt.size()) + batch->longest_label_places()));
    ZP_RETURN_IF_ERROR(batch->Add(std::move(prompt), prepared.work));
  }
  prepared.read = [batch, name = model.name()](
                      const protocol::WorkResult& result) -> absl::StatusOr<json::object> {
    ZP_ASSIGN_OR_RETURN(const std::vector<scoring::LabelAnswer> answers, batch->Read(result));
    json::object answer = Answer(answers, name);
    answer["usage"] = UsageJson(batch->prompt_tokens(), result.usage);
    return answer;
  };
  return prepared;
}

}  // namespace zp::gateway
