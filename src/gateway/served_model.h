// The model as requests see it: its name, how text becomes tokens within its limits, and what its
// directory says beside the weights (tasks.json, special tokens).
//
// Thread safety: immutable; every method may be called from many threads.
// Ownership: tokenizer and spec are lent and must outlive it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "gateway/json_fields.h"
#include "scoring/scoring.h"
#include "spec/model_spec.h"
#include "text/tokenizer.h"

namespace zp::gateway {

// A question that the model was trained on: {"topic": {"template": "...{text}...", "labels":
// [...]}}
struct Task {
  std::string prompt_template;
  std::vector<std::string> labels;

  // The template must hold {text} exactly once.
  absl::Status CheckTemplate() const;
  // REQUIRES: CheckTemplate() is OK. The text is put in as it is; a {text} within it stays.
  std::string Fill(std::string_view text) const;
};

// Bounds on one request, beside the model's own; they keep a small body from asking for much.
struct RequestLimits {
  size_t max_prompts = 16384;
  size_t max_labels = 4096;
  int64_t max_logprobs = 20;             // alternatives per position
  int64_t max_request_tokens = 4 << 20;  // over all sequences of a request, before sharing
  // Log-probabilities, alternatives, elements of vectors in the answer of a request. An answer of
  // so many fits into a message of the work plane, whichever rank gives it.
  int64_t max_answer_numbers = 4 << 20;
};

class ServedModel {
 public:
  // Reads what else lies in the model's directory; missing files are fine, broken ones are not.
  static absl::StatusOr<ServedModel> Load(const std::string& directory,
                                          std::string name,
                                          const text::Tokenizer& tokenizer,
                                          const spec::ModelSpec& spec);
  ServedModel(std::string name, const text::Tokenizer& tokenizer, const spec::ModelSpec& spec);

  const std::string& name() const { return name_; }
  const text::Tokenizer& tokenizer() const { return *tokenizer_; }
  const spec::ModelSpec& spec() const { return *spec_; }
  const RequestLimits& limits() const { return limits_; }
  const std::map<std::string, Task>& tasks() const { return tasks_; }
  // eos_token, bos_token, pad_token, chat_template as tokenizer_config.json has them.
  const std::map<std::string, std::string>& tokenizer_info() const { return tokenizer_info_; }

  void AddTask(const std::string& task_name, Task task) { tasks_[task_name] = std::move(task); }

  // NotFound unless `requested` is empty, "default" or this model's name.
  absl::Status CheckName(std::string_view requested) const;

  // At least one token and at most the model's maximum, or an error that names `field`. Text that
  // cannot fit is refused by its length alone.
  absl::StatusOr<scoring::Tokens> EncodePrompt(std::string_view field,
                                               std::string_view text,
                                               bool add_special_tokens = true) const;
  absl::StatusOr<scoring::Tokens> EncodePrompt(const Prompt& prompt,
                                               bool add_special_tokens = true) const;
  // A label is the tokens of its text alone, without special tokens: " yes" and "yes" differ.
  absl::StatusOr<std::vector<scoring::Tokens>> EncodeLabels(
      std::string_view field, const std::vector<std::string_view>& labels) const;

  absl::Status CheckTokenCount(std::string_view field, int64_t token_count) const;

  // The token as valid UTF-8; a piece of a character becomes U+FFFD.
  std::string TokenText(scoring::TokenId token) const;

 private:
  std::string name_;
  const text::Tokenizer* tokenizer_;
  const spec::ModelSpec* spec_;
  RequestLimits limits_;
  int64_t max_prompt_bytes_ = 0;
  std::map<std::string, Task> tasks_;
  std::map<std::string, std::string> tokenizer_info_;
};

}  // namespace zp::gateway
