#include "scheduler/work_parts.h"

#include "gtest/gtest.h"

namespace zp::scheduler {
namespace {

using protocol::TokenId;
using protocol::Work;
using protocol::WorkResult;

protocol::Sequence Range(TokenId first, int32_t count) {
  protocol::Sequence sequence;
  for (int32_t i = 0; i < count; ++i) {
    sequence.tokens.push_back(first + i);
  }
  return sequence;
}

std::vector<size_t> SequenceCounts(const std::vector<WorkPart>& parts) {
  std::vector<size_t> counts;
  counts.reserve(parts.size());
  for (const WorkPart& part : parts) {
    counts.push_back(part.work.sequences.size());
  }
  return counts;
}

TEST(WorkParts, StayWithinTheLimitAndInOrder) {
  Work work{.request_id = "a"};
  for (TokenId i = 0; i < 5; ++i) {
    work.sequences.push_back(Range(1000 * i, 40));
  }
  const std::vector<WorkPart> parts = CutIntoParts(work, 100);
  EXPECT_EQ(SequenceCounts(parts), (std::vector<size_t>{2, 2, 1}));
  EXPECT_EQ(parts[1].work.sequences[0].tokens[0], 2000);
  EXPECT_EQ(parts[1].work.request_id, "a");
  EXPECT_EQ(CountTokens(parts[2].blocks), 40);
}

TEST(WorkParts, CountASharedPrefixOnce) {
  Work work;
  for (int i = 0; i < 10; ++i) {
    work.sequences.push_back(Range(0, 80));
  }
  EXPECT_EQ(SequenceCounts(CutIntoParts(work, 100)), (std::vector<size_t>{10}));
}

TEST(WorkParts, LeaveALongSequenceAlone) {
  const Work work{.sequences = {Range(0, 10), Range(100, 500), Range(1000, 10)}};
  EXPECT_EQ(SequenceCounts(CutIntoParts(work, 100)), (std::vector<size_t>{1, 1, 1}));
}

TEST(WorkAssembly, JoinsSequencesInOrderWhateverPartComesFirst) {
  std::vector<WorkResult> answers;
  WorkAssembly assembly(
      2, [&](absl::StatusOr<WorkResult> answer) { answers.push_back(*std::move(answer)); });
  assembly.Answer(1, WorkResult{.sequences = {{.pooled = {3}}}, .usage = {.computed_tokens = 5}});
  EXPECT_TRUE(answers.empty());
  assembly.Answer(
      0,
      WorkResult{.sequences = {{.pooled = {1}}, {.pooled = {2}}}, .usage = {.computed_tokens = 7}});
  ASSERT_EQ(answers.size(), 1u);
  ASSERT_EQ(answers[0].sequences.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(answers[0].sequences[i].pooled[0], static_cast<float>(i + 1));
  }
  EXPECT_EQ(answers[0].usage.computed_tokens, 12);
}

TEST(WorkAssembly, AnswersTheFirstFailureOnceAllPartsAreIn) {
  std::vector<absl::Status> answers;
  WorkAssembly assembly(
      3, [&](const absl::StatusOr<WorkResult>& answer) { answers.push_back(answer.status()); });
  assembly.Answer(2, absl::CancelledError("late"));
  assembly.Answer(1, absl::InternalError("early"));
  EXPECT_TRUE(answers.empty());
  assembly.Answer(0, WorkResult());
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_EQ(answers[0].code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace zp::scheduler
