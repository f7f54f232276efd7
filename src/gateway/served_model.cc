#include "gateway/served_model.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/errors.h"
#include "gateway/json_text.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;

// Composing characters (NFC) can shrink text to a third of its bytes; nothing shrinks it more.
constexpr int64_t kNormalizationShrink = 3;
constexpr std::string_view kTextPlaceholder = "{text}";

absl::StatusOr<json::object> ReadJsonFile(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    return json::object();
  }
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file.good()) {
    return absl::InvalidArgumentError(fmt::format("{} cannot be read", path));
  }
  absl::StatusOr<json::value> value = ParseJson(text.str());
  if (!value.ok()) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", path, base::MessageOf(value.status())));
  }
  if (!value->is_object()) {
    return absl::InvalidArgumentError(fmt::format("{} must hold a JSON object", path));
  }
  return std::move(value->get_object());
}

absl::StatusOr<Task> ReadTask(const json::value& value, size_t max_labels) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError("must be an object with template and labels");
  }
  Fields fields(value.get_object());
  Task task;
  task.prompt_template = fields.String("template", "");
  for (const std::string_view label : fields.Strings("labels", max_labels)) {
    task.labels.emplace_back(label);
  }
  ZP_RETURN_IF_ERROR(fields.status());
  ZP_RETURN_IF_ERROR(task.CheckTemplate());
  return task;
}

// tokenizer_config.json writes a special token as its text or as an object with `content`.
std::string SpecialToken(const json::object& config, std::string_view name) {
  const json::value* value = config.if_contains({name.data(), name.size()});
  if (value != nullptr && value->is_object()) {
    value = value->get_object().if_contains("content");
  }
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}

int64_t LongestTokenBytes(const text::Tokenizer& tokenizer) {
  int64_t longest = 1;
  for (int64_t token = 0; token < tokenizer.vocab_count(); ++token) {
    const auto bytes = tokenizer.TokenBytes(static_cast<scoring::TokenId>(token)).size();
    longest = std::max(longest, static_cast<int64_t>(bytes));
  }
  return longest;
}

}  // namespace

absl::Status Task::CheckTemplate() const {
  const size_t place = prompt_template.find(kTextPlaceholder);
  if (place == std::string::npos ||
      prompt_template.find(kTextPlaceholder, place + 1) != std::string::npos) {
    return FieldError("template", "must contain {text}, the place of the input, exactly once");
  }
  return absl::OkStatus();
}

std::string Task::Fill(std::string_view text) const {
  std::string prompt = prompt_template;
  return prompt.replace(prompt.find(kTextPlaceholder), kTextPlaceholder.size(), text);
}

ServedModel::ServedModel(std::string name,
                         const text::Tokenizer& tokenizer,
                         const spec::ModelSpec& spec)
    : name_(std::move(name)),
      tokenizer_(&tokenizer),
      spec_(&spec),
      max_prompt_bytes_(kNormalizationShrink * LongestTokenBytes(tokenizer) *
                        spec.max_position_count) {}

absl::StatusOr<ServedModel> ServedModel::Load(const std::string& directory,
                                              std::string name,
                                              const text::Tokenizer& tokenizer,
                                              const spec::ModelSpec& spec) {
  ServedModel model(std::move(name), tokenizer, spec);
  const std::string tasks_path = directory + "/tasks.json";
  ZP_ASSIGN_OR_RETURN(const json::object tasks, ReadJsonFile(tasks_path));
  for (const json::key_value_pair& pair : tasks) {
    absl::StatusOr<Task> task = ReadTask(pair.value(), model.limits_.max_labels);
    if (!task.ok()) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: {}: {}", tasks_path, std::string(pair.key()), base::MessageOf(task.status())));
    }
    model.tasks_[std::string(pair.key())] = *std::move(task);
  }
  ZP_ASSIGN_OR_RETURN(const json::object config,
                      ReadJsonFile(directory + "/tokenizer_config.json"));
  for (const std::string_view key : {"eos_token", "bos_token", "pad_token", "chat_template"}) {
    model.tokenizer_info_[std::string(key)] = SpecialToken(config, key);
  }
  return model;
}

absl::Status ServedModel::CheckName(std::string_view requested) const {
  if (requested.empty() || requested == "default" || requested == name_) {
    return absl::OkStatus();
  }
  return WithField(absl::NotFoundError(fmt::format(
                       "model \"{}\" is not here; this server has \"{}\"", requested, name_)),
                   "model");
}

absl::Status ServedModel::CheckTokenCount(std::string_view field, int64_t token_count) const {
  if (token_count == 0) {
    return FieldError(field, "is empty: it has no tokens");
  }
  if (token_count > spec_->max_position_count) {
    return FieldError(field,
                      fmt::format("has {} tokens; the model's maximum is {} tokens",
                                  token_count,
                                  spec_->max_position_count));
  }
  return absl::OkStatus();
}

absl::StatusOr<scoring::Tokens> ServedModel::EncodePrompt(std::string_view field,
                                                          std::string_view text,
                                                          bool add_special_tokens) const {
  if (static_cast<int64_t>(text.size()) > max_prompt_bytes_) {
    return FieldError(field,
                      fmt::format("has {} bytes of text, more than fits into the model's maximum "
                                  "of {} tokens",
                                  text.size(),
                                  spec_->max_position_count));
  }
  scoring::Tokens tokens = tokenizer_->Encode(text, add_special_tokens);
  ZP_RETURN_IF_ERROR(CheckTokenCount(field, static_cast<int64_t>(tokens.size())));
  return tokens;
}

absl::StatusOr<scoring::Tokens> ServedModel::EncodePrompt(const Prompt& prompt,
                                                          bool add_special_tokens) const {
  if (!prompt.is_tokens) {
    return EncodePrompt(prompt.field, prompt.text, add_special_tokens);
  }
  ZP_RETURN_IF_ERROR(CheckTokenCount(prompt.field, static_cast<int64_t>(prompt.tokens.size())));
  return prompt.tokens;
}

absl::StatusOr<std::vector<scoring::Tokens>> ServedModel::EncodeLabels(
    std::string_view field, const std::vector<std::string_view>& labels) const {
  std::vector<scoring::Tokens> encoded;
  for (size_t i = 0; i < labels.size(); ++i) {
    ZP_ASSIGN_OR_RETURN(
        scoring::Tokens tokens,
        EncodePrompt(fmt::format("{}[{}]", field, i), labels[i], /*add_special_tokens=*/false));
    encoded.push_back(std::move(tokens));
  }
  return encoded;
}

std::string ServedModel::TokenText(scoring::TokenId token) const {
  return ToValidUtf8(tokenizer_->TokenBytes(token));
}

}  // namespace zp::gateway
