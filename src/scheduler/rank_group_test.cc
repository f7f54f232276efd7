#include "scheduler/rank_group.h"

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/fake_engine.h"

namespace zp::scheduler {
namespace {

using Answer = absl::StatusOr<protocol::WorkResult>;

std::future<Answer> Submit(RankGroup& group, int token_count) {
  auto promise = std::make_shared<std::promise<Answer>>();
  protocol::Sequence sequence;
  sequence.tokens.assign(token_count, 7);
  const absl::Status status =
      group.Submit({.request_id = std::to_string(token_count), .sequences = {std::move(sequence)}},
                   {},
                   [promise](Answer answer) { promise->set_value(std::move(answer)); });
  EXPECT_TRUE(status.ok()) << status;
  return promise->get_future();
}

TEST(RankGroup, WorkGoesToTheRankWithTheShorterBacklog) {
  FakeEngine first_engine;
  FakeEngine second_engine;
  first_engine.Hold();
  second_engine.Hold();
  Scheduler first(first_engine, {.rank = 0});
  Scheduler second(second_engine, {.rank = 1});
  RankGroup group({&first, &second});
  std::vector<std::future<Answer>> answers;
  answers.push_back(Submit(group, 1000));  // to the first
  first_engine.WaitForBatches(1);
  answers.push_back(Submit(group, 10));  // to the second, and so are the next ones
  second_engine.WaitForBatches(1);
  answers.push_back(Submit(group, 20));
  answers.push_back(Submit(group, 30));
  first_engine.LetGo();
  second_engine.LetGo();
  for (auto& answer : answers) {
    EXPECT_TRUE(answer.get().ok());
  }
  EXPECT_EQ(first_engine.batches(), (std::vector<std::vector<std::string>>{{"1000"}}));
  EXPECT_EQ(second_engine.batches(), (std::vector<std::vector<std::string>>{{"10"}, {"20", "30"}}));
}

}  // namespace
}  // namespace zp::scheduler
