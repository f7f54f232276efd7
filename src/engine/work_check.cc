#include "engine/work_check.h"

#include <utility>

#include "fmt/format.h"

namespace zp::engine {
namespace {

constexpr int32_t kMaxTopCount = 1024;

absl::Status CheckRow(const spec::ModelSpec& spec,
                      const protocol::Sequence& sequence,
                      size_t index,
                      int32_t previous) {
  const protocol::RowAsk& ask = sequence.rows[index];
  if (ask.position <= previous || ask.position >= static_cast<int32_t>(sequence.tokens.size())) {
    return absl::InvalidArgumentError(
        fmt::format("row {} asks for position {}; positions rise and lie in [0, {})",
                    index,
                    ask.position,
                    sequence.tokens.size()));
  }
  if (ask.top_count < 0 || ask.top_count > kMaxTopCount ||
      (ask.top_count > 0 && !ask.full_vocabulary)) {
    return absl::InvalidArgumentError(
        fmt::format("row {} asks for the top {} tokens; the limit is {}, over the full vocabulary",
                    index,
                    ask.top_count,
                    kMaxTopCount));
  }
  for (const spec::TokenId column : ask.columns) {
    if (column < 0 || column >= spec.vocab_count) {
      return absl::InvalidArgumentError(fmt::format(
          "row {} asks for token {}; the vocabulary is [0, {})", index, column, spec.vocab_count));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSequence(const spec::ModelSpec& spec, const protocol::Sequence& sequence) {
  if (sequence.tokens.empty()) {
    return absl::InvalidArgumentError("the sequence has no tokens");
  }
  if (sequence.rows.empty() && sequence.pooling == protocol::Pooling::kNone) {
    return absl::InvalidArgumentError("nothing is asked of the sequence: neither rows nor pooling");
  }
  if (std::cmp_greater(sequence.tokens.size(), spec.max_position_count)) {
    return absl::InvalidArgumentError(
        fmt::format("the sequence has {} tokens; the model's maximum is {}",
                    sequence.tokens.size(),
                    spec.max_position_count));
  }
  for (const spec::TokenId token : sequence.tokens) {
    if (token < 0 || token >= spec.vocab_count) {
      return absl::InvalidArgumentError(
          fmt::format("token {} is not in the vocabulary [0, {})", token, spec.vocab_count));
    }
  }
  int32_t previous = -1;
  for (size_t index = 0; index < sequence.rows.size(); ++index) {
    ZP_RETURN_IF_ERROR(CheckRow(spec, sequence, index, previous));
    previous = sequence.rows[index].position;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckWork(const spec::ModelSpec& spec, const protocol::Work& work) {
  if (work.sequences.empty()) {
    return absl::InvalidArgumentError("the work has no sequences");
  }
  for (size_t index = 0; index < work.sequences.size(); ++index) {
    if (const absl::Status status = CheckSequence(spec, work.sequences[index]); !status.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("sequence {}: {}", index, base::MessageOf(status)));
    }
  }
  return absl::OkStatus();
}

}  // namespace zp::engine
