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

std::string TaskNames(const ServedModel& model) {
  std::string known;
  for (const auto& [task_name, task] : model.tasks()) {
    known += fmt::format("{}\"{}\"", known.empty() ? "" : ", ", task_name);
  }
  return known.empty() ? "this model has no tasks: give labels" : "this model has " + known;
}

absl::StatusOr<Task> FindTask(std::string_view name, const ServedModel& model) {
  const auto found = model.tasks().find(std::string(name));
  if (found != model.tasks().end()) {
    return found->second;
  }
  return FieldError("task", fmt::format("\"{}\" is unknown; {}", name, TaskNames(model)));
}

// Labels and template from the body, and from its task what the body leaves open.
absl::StatusOr<Task> ReadQuestion(Fields& fields, const ServedModel& model) {
  Task question;
  question.prompt_template = "{text}";
  if (fields.Has("task")) {
    ZP_ASSIGN_OR_RETURN(const Task task, FindTask(fields.String("task", ""), model));
    question = {.prompt_template = task.prompt_template, .labels = task.labels};
  }
  question.prompt_template = fields.String("template", question.prompt_template);
  if (fields.Has("labels") || question.labels.empty()) {
    question.labels.clear();
    if (!fields.Has("labels") && !model.tasks().empty()) {
      fields.Fail("labels", fmt::format("is required without a task: {}", TaskNames(model)));
    }
    for (const std::string_view label : fields.Strings("labels", model.limits().max_labels)) {
      question.labels.emplace_back(label);
    }
  }
  ZP_RETURN_IF_ERROR(fields.status());
  ZP_RETURN_IF_ERROR(question.CheckTemplate());
  return question;
}

scoring::Normalization ReadNormalization(Fields& fields) {
  const std::string_view name = fields.String("normalization", "labels");
  if (name != "labels" && name != "vocabulary") {
    fields.Fail("normalization", "must be \"labels\" or \"vocabulary\"");
  }
  return name == "vocabulary" ? scoring::Normalization::kVocabulary
                              : scoring::Normalization::kLabels;
}

json::array Data(const std::vector<scoring::LabelAnswer>& answers,
                 const std::vector<std::string>& labels) {
  json::array data;
  for (size_t i = 0; i < answers.size(); ++i) {
    json::array probs;
    json::array log_probs;
    for (const double log_prob : answers[i].log_probs) {
      probs.emplace_back(std::exp(log_prob));
      log_probs.emplace_back(log_prob);
    }
    data.push_back(json::object{{"index", i},
                                {"label", labels[answers[i].best_label]},
                                {"probs", std::move(probs)},
                                {"num_classes", labels.size()},
                                {"log_probs", std::move(log_probs)}});
  }
  return data;
}

json::array ToJson(const std::vector<std::string>& texts) {
  json::array array;
  for (const std::string& text : texts) {
    array.emplace_back(text);
  }
  return array;
}

}  // namespace

absl::StatusOr<Prepared> PrepareClassify(const json::object& body, const RequestContext& context) {
  const ServedModel& model = context.model;
  Fields fields(body);
  ZP_RETURN_IF_ERROR(model.CheckName(fields.String("model", "")));
  fields.Unsupported("messages", "give input");
  fields.Unsupported("truncate_prompt_tokens", "shorten the input yourself");
  const scoring::Normalization normalization = ReadNormalization(fields);
  const std::string_view field = fields.OneOf({"input", "inputs", "prompt"});
  const std::vector<std::string_view> inputs = fields.Strings(field, model.limits().max_prompts);
  ZP_RETURN_IF_ERROR(fields.status());
  ZP_ASSIGN_OR_RETURN(const Task question, ReadQuestion(fields, model));
  ZP_ASSIGN_OR_RETURN(
      std::vector<Tokens> label_tokens,
      model.EncodeLabels("labels", {question.labels.begin(), question.labels.end()}));
  ZP_RETURN_IF_ERROR(CheckDistinct("labels", label_tokens));

  Prepared prepared;
  prepared.work.request_id = context.request_id;
  auto batch = std::make_shared<LabelBatch>(std::move(label_tokens), normalization, model.limits());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string name =
        inputs.size() == 1 ? std::string(field) : fmt::format("{}[{}]", field, i);
    ZP_ASSIGN_OR_RETURN(Tokens prompt, model.EncodePrompt(name, question.Fill(inputs[i])));
    ZP_RETURN_IF_ERROR(model.CheckTokenCount(
        name, static_cast<int64_t>(prompt.size()) + batch->longest_label_places()));
    ZP_RETURN_IF_ERROR(batch->Add(std::move(prompt), prepared.work));
  }
  prepared.read = [batch,
                   labels = question.labels,
                   name = model.name(),
                   id = "classify-" + context.request_id,
                   created = context.created_seconds](
                      const protocol::WorkResult& result) -> absl::StatusOr<json::object> {
    ZP_ASSIGN_OR_RETURN(const std::vector<scoring::LabelAnswer> answers, batch->Read(result));
    return json::object{{"id", id},
                        {"object", "list"},
                        {"created", created},
                        {"model", name},
                        {"labels", ToJson(labels)},
                        {"data", Data(answers, labels)},
                        {"usage", UsageJson(batch->prompt_tokens(), result.usage)}};
  };
  return prepared;
}

}  // namespace zp::gateway
