#include "scheduler/work_parts.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace zp::scheduler {
namespace {

using protocol::SequenceResult;
using protocol::Usage;
using protocol::WorkResult;

// The work waited until its first part ran, and computed in each of its passes.
void AddUsage(const Usage& part, Usage& whole) {
  whole.prompt_tokens += part.prompt_tokens;
  whole.computed_tokens += part.computed_tokens;
  whole.flops += part.flops;
  whole.queue_seconds = std::min(whole.queue_seconds, part.queue_seconds);
  whole.compute_seconds += part.compute_seconds;
}

}  // namespace

std::vector<WorkPart> CutIntoParts(protocol::Work work, int64_t max_tokens) {
  std::vector<WorkPart> parts;
  DistinctTokens distinct;
  for (protocol::Sequence& sequence : work.sequences) {
    const std::vector<TokenBlock> blocks = CutIntoBlocks(sequence);
    std::vector<TokenBlock> added = distinct.FindNew(blocks);
    if (parts.empty() || distinct.count() + CountTokens(added) > max_tokens) {
      parts.push_back({.work = {.request_id = work.request_id}});
      distinct = DistinctTokens();
      added = blocks;
    }
    WorkPart& part = parts.back();
    distinct.Add(added);
    part.blocks.insert(part.blocks.end(), added.begin(), added.end());
    part.work.sequences.push_back(std::move(sequence));
  }
  return parts;
}

void WorkAssembly::Answer(size_t part, absl::StatusOr<WorkResult> answer) {
  {
    std::lock_guard lock(mutex_);
    answers_[part] = std::move(answer);
    if (--missing_ > 0) {
      return;
    }
  }
  done_(Join());
}

absl::StatusOr<WorkResult> WorkAssembly::Join() {
  for (const absl::StatusOr<WorkResult>& answer : answers_) {
    ZP_RETURN_IF_ERROR(answer.status());
  }
  WorkResult whole = *std::move(answers_.front());
  for (size_t part = 1; part < answers_.size(); ++part) {
    std::vector<SequenceResult>& sequences = answers_[part]->sequences;
    std::move(sequences.begin(), sequences.end(), std::back_inserter(whole.sequences));
    AddUsage(answers_[part]->usage, whole.usage);
  }
  return whole;
}

}  // namespace zp::scheduler
