// The held-out sample that lies beside a model, its reference accuracies, and the server's answers
// to it.
//
// Thread safety: none.
// Errors: NotFound / InvalidArgument with the file and the line.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"

namespace zp::apps {

// One text of heldout_sample.jsonl, and what the server said to it.
struct SampleText {
  std::string id;
  std::string task;
  std::string text;
  std::string label;  // the right one

  std::string answer;
  double probability = 0;  // of the answer
};

absl::StatusOr<std::vector<SampleText>> ReadSample(const std::string& model_directory);

// What the reference implementation made of the same model in bf16.
struct Reference {
  std::map<std::string, double> accuracies;    // by task, over the whole held-out set
  std::map<std::string, std::string> answers;  // by id, to the texts of the sample
};
// Empty where the model brings no heldout_reference.json.
absl::StatusOr<Reference> ReadReference(const std::string& model_directory);

// The body of the request that asks the server for the label of `text`.
std::string ClassifyBody(const SampleText& text);

// What the answers cost, by the server's own account.
struct SampleCost {
  int64_t prompt_tokens = 0;
  int64_t computed_tokens = 0;
};

// Puts the server's answer (the body of a classify response) into `text` and its cost into `cost`.
absl::Status ReadAnswer(const std::string& body, SampleText& text, SampleCost& cost);

}  // namespace zp::apps
