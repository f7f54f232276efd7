#include "gateway/endpoints.h"

#include <algorithm>
#include <span>

#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/errors.h"

namespace zp::gateway {

boost::json::object UsageJson(int64_t prompt_tokens, const protocol::Usage& usage) {
  return {{"prompt_tokens", prompt_tokens},
          {"total_tokens", prompt_tokens},
          {"completion_tokens", 0},  // nothing is generated
          {"prompt_tokens_details",
           {{"cached_tokens", std::min(prompt_tokens, usage.cached_tokens)},
            {"computed_tokens", usage.computed_tokens}}},
          {"flops", usage.flops}};
}

absl::Status RequestBudget::Spend(const RequestCost& cost) {
  constexpr int64_t kSequenceTokens = 16;  // what a sequence costs beside its tokens, as tokens
  tokens_ += cost.tokens + cost.sequences * kSequenceTokens;
  answer_numbers_ += cost.answer_numbers;
  if (tokens_ > limits_.max_request_tokens) {
    return absl::InvalidArgumentError(
        fmt::format("the request comes to more than {} tokens over all its prompts and labels, the "
                    "limit of one request: send several",
                    limits_.max_request_tokens));
  }
  if (answer_numbers_ > limits_.max_answer_numbers) {
    return absl::InvalidArgumentError(
        fmt::format("the answer would have more than {} log-probabilities, alternatives and vector "
                    "elements, the limit of one request: send several",
                    limits_.max_answer_numbers));
  }
  return absl::OkStatus();
}

absl::Status CheckDistinct(std::string_view field, const std::vector<scoring::Tokens>& labels) {
  const auto same = scoring::FindSameLabels(labels);
  return same.has_value()
             ? FieldError(fmt::format("{}[{}]", field, same->second),
                          fmt::format("has the same tokens as {}[{}]", field, same->first))
             : absl::OkStatus();
}

LabelBatch::LabelBatch(std::vector<scoring::Tokens> labels,
                       scoring::Normalization normalization,
                       const RequestLimits& limits)
    : question_{.prompt = {}, .labels = std::move(labels), .normalization = normalization},
      budget_(limits) {
  for (const scoring::Tokens& label : question_.labels) {
    label_tokens_ += static_cast<int64_t>(label.size());
    longest_label_tokens_ = std::max(longest_label_tokens_, static_cast<int64_t>(label.size()));
  }
}

// Labels of one token are columns of one row; others take a sequence and their tokens each.
RequestCost LabelBatch::CostOf(int64_t prompt_tokens) const {
  const auto sequences = static_cast<int64_t>(scoring::LabelSequenceCount(question_));
  return {.sequences = sequences,
          .tokens = sequences * prompt_tokens + label_tokens_,
          .answer_numbers = label_tokens_ + sequences};
}

absl::Status LabelBatch::Add(scoring::Tokens prompt, protocol::Work& work) {
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  ZP_RETURN_IF_ERROR(budget_.Spend(CostOf(prompt_tokens)));
  question_.prompt = prompt;
  ZP_RETURN_IF_ERROR(scoring::PlanLabels(question_, work));
  prompt_tokens_ += prompt_tokens;
  prompts_.push_back(std::move(prompt));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<scoring::LabelAnswer>> LabelBatch::Read(
    const protocol::WorkResult& result) const {
  std::span<const protocol::SequenceResult> rest = result.sequences;
  scoring::LabelQuestion question = question_;
  std::vector<scoring::LabelAnswer> answers;
  for (const scoring::Tokens& prompt : prompts_) {
    question.prompt = prompt;
    const size_t count = std::min(scoring::LabelSequenceCount(question), rest.size());
    ZP_ASSIGN_OR_RETURN(scoring::LabelAnswer answer,
                        scoring::ReadLabels(question, rest.first(count)));
    answers.push_back(std::move(answer));
    rest = rest.subspan(count);
  }
  return answers;
}

}  // namespace zp::gateway
