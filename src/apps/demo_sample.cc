#include "apps/demo_sample.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "boost/json.hpp"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

absl::StatusOr<std::ifstream> OpenFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    return absl::NotFoundError(fmt::format("cannot read {}", path));
  }
  return file;
}

absl::StatusOr<json::object> ParseObject(const std::string& text, const std::string& name) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  if (error || !value.is_object()) {
    return absl::InvalidArgumentError(fmt::format("{}: not a JSON object", name));
  }
  return std::move(value.get_object());
}

absl::StatusOr<std::string> StringField(const json::object& object,
                                        const char* field,
                                        const std::string& name) {
  const json::value* value = object.if_contains(field);
  if (value == nullptr || !value->is_string()) {
    return absl::InvalidArgumentError(fmt::format("{}: \"{}\" must be a string", name, field));
  }
  return std::string(value->get_string());
}

absl::StatusOr<SampleText> ParseSampleLine(const std::string& line, const std::string& name) {
  ZP_ASSIGN_OR_RETURN(const json::object object, ParseObject(line, name));
  SampleText text;
  ZP_ASSIGN_OR_RETURN(text.id, StringField(object, "id", name));
  ZP_ASSIGN_OR_RETURN(text.task, StringField(object, "task", name));
  ZP_ASSIGN_OR_RETURN(text.text, StringField(object, "text", name));
  ZP_ASSIGN_OR_RETURN(text.label, StringField(object, "label", name));
  return text;
}

// The value at `pointer` ("/data/0/label"), or null.
const json::value* Find(const json::value& value, const std::string& pointer) {
  boost::system::error_code error;
  return value.find_pointer(pointer, error);
}

// The members of the object at `pointer`; none where there is no object.
json::object Children(const json::value& value, const std::string& pointer) {
  const json::value* found = Find(value, pointer);
  return found != nullptr && found->is_object() ? found->get_object() : json::object();
}

int64_t Integer(const json::value& value, const std::string& pointer) {
  const json::value* found = Find(value, pointer);
  return found != nullptr && found->is_int64() ? found->get_int64() : 0;
}

}  // namespace

absl::StatusOr<std::vector<SampleText>> ReadSample(const std::string& model_directory) {
  const std::string path = model_directory + "/heldout_sample.jsonl";
  ZP_ASSIGN_OR_RETURN(std::ifstream file, OpenFile(path));
  std::vector<SampleText> sample;
  std::string line;
  for (int line_number = 1; std::getline(file, line); ++line_number) {
    ZP_ASSIGN_OR_RETURN(SampleText text,
                        ParseSampleLine(line, fmt::format("{}:{}", path, line_number)));
    sample.push_back(std::move(text));
  }
  if (sample.empty()) {
    return absl::InvalidArgumentError(fmt::format("{} is empty", path));
  }
  return sample;
}

absl::StatusOr<Reference> ReadReference(const std::string& model_directory) {
  const std::string path = model_directory + "/heldout_reference.json";
  Reference reference;
  absl::StatusOr<std::ifstream> file = OpenFile(path);
  if (!file.ok()) {
    return reference;
  }
  std::ostringstream text;
  text << file->rdbuf();
  ZP_ASSIGN_OR_RETURN(json::object object, ParseObject(text.str(), path));
  const json::value whole = std::move(object);
  for (const auto& [task, figures] : Children(whole, "/accuracy/bf16")) {
    const json::value* accuracy = Find(figures, "/accuracy");
    if (accuracy != nullptr && accuracy->is_double()) {
      reference.accuracies[std::string(task)] = accuracy->get_double();
    }
  }
  for (const auto& [id, answers] : Children(whole, "/sample")) {
    const json::value* label = Find(answers, "/bf16/label");
    if (label != nullptr && label->is_string()) {
      reference.answers[std::string(id)] = std::string(label->get_string());
    }
  }
  return reference;
}

std::string ClassifyBody(const SampleText& text) {
  return json::serialize(json::object{{"task", text.task}, {"input", json::array{text.text}}});
}

absl::Status ReadAnswer(const std::string& body, SampleText& text, SampleCost& cost) {
  boost::system::error_code error;
  const json::value value = json::parse(body, error);
  const json::value* label = error ? nullptr : Find(value, "/data/0/label");
  const json::value* probs = error ? nullptr : Find(value, "/data/0/probs");
  if (label == nullptr || !label->is_string() || probs == nullptr || !probs->is_array()) {
    return absl::InternalError(fmt::format("not a classify answer: {}", body));
  }
  text.answer = std::string(label->get_string());
  for (const json::value& probability : probs->get_array()) {
    text.probability = std::max(text.probability, probability.to_number<double>(error));
  }
  cost.prompt_tokens += Integer(value, "/usage/prompt_tokens");
  cost.computed_tokens += Integer(value, "/usage/prompt_tokens_details/computed_tokens");
  return absl::OkStatus();
}

}  // namespace zp::apps
