#include "gateway/endpoints.h"

#include <algorithm>
#include <span>

#include "boost/json.hpp"
#include "fmt/format.h"

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

absl::Status TokenBudget::Spend(int64_t sequence_count, int64_t tokens_per_sequence) {
  constexpr int64_t kSequenceTokens = 16;  // what a sequence costs beside its tokens, as tokens
  spent_ += sequence_count * (tokens_per_sequence + kSequenceTokens);
  if (spent_ <= limit_) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      fmt::format("the request comes to more than {} tokens over all its prompts and labels, the "
                  "limit of one request: send several",
                  limit_));
}

absl::Status LabelBatch::Add(scoring::Tokens prompt, protocol::Work& work) {
  scoring::LabelQuestion question{
      .prompt = std::move(prompt), .labels = labels_, .normalization = normalization_};
  const auto prompt_tokens = static_cast<int64_t>(question.prompt.size());
  const auto sequence_count = static_cast<int64_t>(scoring::LabelSequenceCount(question));
  const auto label_count = static_cast<int64_t>(labels_.size());  // of columns, where one sequence
  ZP_RETURN_IF_ERROR(budget_.Spend(sequence_count, prompt_tokens + label_count / sequence_count));
  ZP_RETURN_IF_ERROR(scoring::PlanLabels(question, work));
  prompt_tokens_ += prompt_tokens;
  questions_.push_back(std::move(question));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<scoring::LabelAnswer>> LabelBatch::Read(
    const protocol::WorkResult& result) const {
  std::span<const protocol::SequenceResult> rest = result.sequences;
  std::vector<scoring::LabelAnswer> answers;
  for (const scoring::LabelQuestion& question : questions_) {
    const size_t count = std::min(scoring::LabelSequenceCount(question), rest.size());
    ZP_ASSIGN_OR_RETURN(scoring::LabelAnswer answer,
                        scoring::ReadLabels(question, rest.first(count)));
    answers.push_back(std::move(answer));
    rest = rest.subspan(count);
  }
  return answers;
}

}  // namespace zp::gateway
