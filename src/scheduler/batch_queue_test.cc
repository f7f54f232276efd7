#include "scheduler/batch_queue.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::scheduler {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
using ::testing::UnorderedElementsAreArray;

constexpr double kFlopsPerToken = 10;
const TimePoint kStart = TimePoint() + std::chrono::hours(1);

// `blocks` blocks; the first `shared_blocks` of them are those of `family`.
PartCost MakePart(uint64_t name, int blocks, uint64_t family = 0, int shared_blocks = 0) {
  PartCost part;
  for (uint64_t i = 0; i < static_cast<uint64_t>(blocks); ++i) {
    const bool is_shared = i < static_cast<uint64_t>(shared_blocks);
    part.blocks.push_back({.name = {.high = is_shared ? ~family : name, .low = i},
                           .token_count = protocol::kBlockTokens});
  }
  part.flops = kFlopsPerToken * static_cast<double>(CountTokens(part.blocks));
  return part;
}

WaitingWork MakeWork(uint64_t id, int blocks, uint64_t family = 0, int shared_blocks = 0) {
  return {
      .id = id, .parts = {MakePart(id << 20, blocks, family, shared_blocks)}, .arrival = kStart};
}

// A work of `part_count` parts.
WaitingWork MakeParts(uint64_t id, int part_count, int blocks) {
  WaitingWork work = {.id = id, .arrival = kStart};
  for (int part = 0; part < part_count; ++part) {
    work.parts.push_back(MakePart((id << 20) + part, blocks));
  }
  return work;
}

std::vector<uint64_t> Ids(const Batch& batch) {
  std::vector<uint64_t> ids;
  for (const TakenWork& work : batch.works) {
    ids.push_back(work.id);
  }
  return ids;
}

std::vector<uint64_t> TakeIds(BatchQueue& queue, TimePoint now = kStart) {
  return Ids(queue.Take(now));
}

TEST(BatchQueue, TakesEqualWorksFirstInFirstOut) {
  BatchQueue queue({.max_batch_tokens = 32});
  for (uint64_t id = 1; id <= 5; ++id) {
    queue.Add(MakeWork(id, 1));
  }
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 2));
  EXPECT_THAT(TakeIds(queue), ElementsAre(3, 4));
  EXPECT_THAT(TakeIds(queue), ElementsAre(5));
  EXPECT_THAT(TakeIds(queue), IsEmpty());
  EXPECT_EQ(queue.waiting_flops(), 0);
}

TEST(BatchQueue, TakesTheShorterWorkFirst) {
  BatchQueue queue({.max_batch_tokens = 160});
  queue.Add(MakeWork(1, 9));
  queue.Add(MakeWork(2, 2));
  queue.Add(MakeWork(3, 2));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2, 3));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1));
}

TEST(BatchQueue, AWorkIsOvertakenByAtMostAMultipleOfItsCost) {
  BatchQueue queue({.max_batch_tokens = 160, .ageing = 4});
  queue.Add(MakeWork(1, 10));
  int overtaken_blocks = 0;
  for (uint64_t id = 2;; id += 5) {
    for (uint64_t i = 0; i < 5; ++i) {
      queue.Add(MakeWork(id + i, 2));
    }
    if (TakeIds(queue) == std::vector<uint64_t>{1}) {
      break;
    }
    overtaken_blocks += 10;
  }
  EXPECT_LE(overtaken_blocks, 40);
  EXPECT_GE(overtaken_blocks, 20);
}

TEST(BatchQueue, FillsWithWhatFitsBehindAWorkThatDoesNot) {
  BatchQueue queue({.max_batch_tokens = 160, .ageing = 1});
  queue.Add(MakeWork(1, 4));
  queue.Add(MakeWork(2, 7));
  queue.Add(MakeWork(3, 4));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 3));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2));
}

TEST(BatchQueue, DoesNotFillWithWhatMustNotOvertake) {
  BatchQueue queue({.max_batch_tokens = 160, .ageing = 1});
  queue.Add(MakeWork(1, 4));
  queue.Add(MakeWork(2, 7));
  queue.Add(MakeWork(3, 9));
  queue.Add(MakeWork(4, 4));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2));
}

TEST(BatchQueue, CountsASharedPrefixOnce) {
  BatchQueue queue({.max_batch_tokens = 160});
  for (uint64_t id = 1; id <= 4; ++id) {
    queue.Add(MakeWork(id, 8, /*family=*/7, /*shared_blocks=*/7));
  }
  const Batch batch = queue.Take(kStart);
  EXPECT_THAT(Ids(batch), ElementsAre(1, 2, 3));
  EXPECT_EQ(batch.distinct_tokens, 160);
  EXPECT_DOUBLE_EQ(batch.flops, 160 * kFlopsPerToken);
  EXPECT_DOUBLE_EQ(batch.asked_flops, 3 * 128 * kFlopsPerToken);
}

TEST(BatchQueue, CallsTheRelativesOfWhatRuns) {
  BatchQueue queue({.max_batch_tokens = int64_t{24} * 16});
  for (uint64_t i = 0; i < 16; ++i) {
    queue.Add(MakeWork(i + 1, 10, /*family=*/i % 4, /*shared_blocks=*/9));
  }
  // Two families of four: 2 * (9 + 4) blocks would be two too many.
  EXPECT_THAT(TakeIds(queue), UnorderedElementsAre(1, 5, 9, 13, 2, 6));
}

TEST(BatchQueue, TakesBetterPrioritiesStrictlyFirst) {
  BatchQueue queue({.max_batch_tokens = 160});
  WaitingWork late = MakeWork(1, 1);
  late.priority = 5;
  queue.Add(std::move(late));
  queue.Add(MakeWork(2, 8));
  WaitingWork early = MakeWork(3, 6);
  early.priority = -1;
  queue.Add(std::move(early));
  // The first and the second do not fit together, and the last must not profit from it.
  EXPECT_THAT(TakeIds(queue), ElementsAre(3));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2, 1));
}

TEST(BatchQueue, DropsWhatIsCancelledOrTooLate) {
  BatchQueue queue({});
  std::stop_source client;
  WaitingWork cancelled = MakeWork(1, 1);
  cancelled.cancel = client.get_token();
  WaitingWork expired = MakeWork(2, 1);
  expired.deadline = kStart + milliseconds(5);
  WaitingWork in_time = MakeWork(3, 1);
  in_time.deadline = kStart + milliseconds(6);
  queue.Add(std::move(cancelled));
  queue.Add(std::move(expired));
  queue.Add(std::move(in_time));
  queue.Prepare(kStart);
  client.request_stop();
  EXPECT_THAT(TakeIds(queue, kStart + milliseconds(6)), ElementsAre(3));
  const std::vector<DroppedWork> dropped = queue.TakeDropped();
  ASSERT_EQ(dropped.size(), 2u);
  EXPECT_EQ(dropped[0].id, 2u);
  EXPECT_EQ(dropped[0].reason, DropReason::kExpired);
  EXPECT_EQ(dropped[1].id, 1u);
  EXPECT_EQ(dropped[1].reason, DropReason::kCancelled);
  EXPECT_EQ(queue.work_count(), 0u);
  EXPECT_EQ(queue.waiting_flops(), 0);
}

TEST(BatchQueue, APreparedBatchStaysWhenSomebodyElsesTimeIsOver) {
  BatchQueue queue({.max_batch_tokens = 160});
  for (uint64_t id = 1; id <= 2; ++id) {
    WaitingWork work = MakeWork(id, 10);
    work.deadline = kStart + milliseconds(id == 1 ? 9 : 5);
    queue.Add(std::move(work));
  }
  queue.Prepare(kStart);
  queue.DropExpired(kStart + milliseconds(6));
  EXPECT_TRUE(queue.is_prepared());
  EXPECT_EQ(queue.TakeDropped().size(), 1u);
  queue.DropExpired(kStart + milliseconds(10));
  EXPECT_FALSE(queue.is_prepared());
  EXPECT_THAT(TakeIds(queue, kStart + milliseconds(10)), IsEmpty());
}

TEST(BatchQueue, CountsWhomItMustNotTakeOnce) {
  // Work 2 does not fit beside the first and is due before those that came after work 3: twenty
  // relatives of the first, in five families each.
  BatchQueue queue({.max_batch_tokens = int64_t{64} * 16, .ageing = 1});
  queue.SetSpeed(1e6, 1e9);
  queue.Add(MakeWork(1, 16, /*family=*/7, /*shared_blocks=*/16));
  queue.Add(MakeWork(2, 60));
  queue.Add(MakeWork(3, 40));
  queue.Add(MakeWork(4, 25));
  for (uint64_t id = 5; id < 25; ++id) {
    WaitingWork relative = MakeWork(id, 17, /*family=*/7, /*shared_blocks=*/16);
    relative.parts[0].flops = 1;
    queue.Add(std::move(relative));
  }
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 3));
}

TEST(BatchQueue, APreparedBatchTakesInWhatComesLater) {
  BatchQueue queue({.max_batch_tokens = 160});
  queue.Add(MakeWork(1, 4));
  queue.Prepare(kStart);
  queue.Add(MakeWork(2, 4));
  EXPECT_EQ(queue.work_count(), 2u);
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 2));
}

TEST(BatchQueue, APreparedBatchGivesWayToWhatGoesFirst) {
  BatchQueue queue({.max_batch_tokens = 160});
  queue.Add(MakeWork(1, 10));
  queue.Prepare(kStart);
  queue.Add(MakeWork(2, 1));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1));
}

TEST(BatchQueue, RemovesFromAPreparedBatch) {
  BatchQueue queue({.max_batch_tokens = 160});
  queue.Add(MakeWork(1, 4));
  queue.Add(MakeWork(2, 4));
  queue.Prepare(kStart);
  EXPECT_TRUE(queue.Remove(1));
  EXPECT_FALSE(queue.Remove(1));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2));
}

TEST(BatchQueue, TakesALargeWorkOverSeveralPasses) {
  BatchQueue queue({.max_batch_tokens = 640});
  queue.Add(MakeParts(1, 18, 4));
  const Batch first = queue.Take(kStart);
  ASSERT_EQ(first.works.size(), 1u);
  EXPECT_EQ(first.works[0].first_part, 0);
  EXPECT_EQ(first.works[0].part_count, 10);
  EXPECT_FALSE(first.works[0].is_last);
  // A short one comes first, and is not kept waiting by more than a quarter of a batch.
  queue.Add(MakeWork(2, 2));
  const Batch second = queue.Take(kStart);
  ASSERT_THAT(Ids(second), ElementsAre(2, 1));
  EXPECT_EQ(second.works[1].first_part, 10);
  EXPECT_EQ(second.works[1].part_count, 2);
  const Batch third = queue.Take(kStart);
  ASSERT_EQ(third.works.size(), 1u);
  EXPECT_EQ(third.works[0].part_count, 6);
  EXPECT_TRUE(third.works[0].is_last);
  EXPECT_EQ(queue.work_count(), 0u);
}

TEST(BatchQueue, TakesOnePartAPassWhereEachNeedsTheOneBefore) {
  BatchQueue queue({.max_batch_tokens = 640});
  WaitingWork work = MakeParts(1, 3, 2);
  work.ahead_count = 2;
  queue.Add(std::move(work));
  queue.Add(MakeWork(2, 1));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2, 1));
  queue.Prepare(kStart);
  queue.Add(MakeWork(3, 2));
  EXPECT_THAT(TakeIds(queue), UnorderedElementsAre(1, 3));
  const Batch third = queue.Take(kStart);
  ASSERT_EQ(third.works.size(), 1u);
  EXPECT_EQ(third.works[0].first_part, 2);
  EXPECT_TRUE(third.works[0].is_last);
}

// A batch takes their parts while it costs at most sqrt(n) of them; none is held up for ever.
TEST(BatchQueue, WorksOfOnePartAPassTakeTurns) {
  BatchQueue queue({.max_batch_tokens = 1600});
  for (uint64_t id = 1; id <= 4; ++id) {
    WaitingWork work = MakeParts(id, 3, 4);
    work.ahead_count = std::ssize(work.parts) - 1;
    queue.Add(std::move(work));
  }
  queue.Add(MakeWork(5, 1));
  EXPECT_THAT(TakeIds(queue), ElementsAre(5, 1, 2));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 2, 3));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 2, 3));
  EXPECT_THAT(TakeIds(queue), ElementsAre(3, 4));
  EXPECT_THAT(TakeIds(queue), ElementsAre(4));
  EXPECT_THAT(TakeIds(queue), ElementsAre(4));
}

TEST(BatchQueue, APartComputedAheadDoesNotLengthenAPassThatIsLongWithoutIt) {
  BatchQueue queue({.max_batch_tokens = 1600});
  WaitingWork work = MakeParts(1, 3, 4);
  work.ahead_count = std::ssize(work.parts) - 1;
  queue.Add(std::move(work));
  for (uint64_t id = 2; id <= 6; ++id) {
    queue.Add(MakeWork(id, 1));
  }
  EXPECT_THAT(TakeIds(queue), ElementsAre(2, 3, 4, 5, 6));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1));
}

// Each is a long work, and what it adds to a pass is not: together they may fill it.
TEST(BatchQueue, ManyPartsComputedAheadFillAPass) {
  BatchQueue queue({.max_batch_tokens = 640, .ageing = 0});
  for (uint64_t id = 1; id <= 10; ++id) {
    WaitingWork work = MakeParts(id, 4, 4);
    work.ahead_count = std::ssize(work.parts) - 1;
    queue.Add(std::move(work));
  }
  queue.Add(MakeWork(11, 1));  // so all others are due
  EXPECT_EQ(queue.Take(kStart).distinct_tokens, 640);
}

// Theirs are computed once, so they go together.
TEST(BatchQueue, WorksOfOneBeginningTakeItsPartsTogether) {
  BatchQueue queue({.max_batch_tokens = 1600});
  for (uint64_t id = 1; id <= 2; ++id) {
    WaitingWork work = MakeParts(7, 2, 4);
    work.id = id;
    work.ahead_count = std::ssize(work.parts) - 1;
    queue.Add(std::move(work));
  }
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 2));
}

// Whose turn is due goes: to pass it over would bar all that came after it.
TEST(BatchQueue, AWorkOfOnePartAPassThatIsDueDoesNotWaitForItsTurn) {
  BatchQueue queue({.max_batch_tokens = 1600, .ageing = 1});
  for (uint64_t id = 1; id <= 4; ++id) {
    WaitingWork work = MakeParts(id, 2, 2);
    work.ahead_count = std::ssize(work.parts) - 1;
    queue.Add(std::move(work));
  }
  queue.Add(MakeWork(5, 6));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 2, 3, 4, 5));
}

// Works whose beginning is computed ahead: three parts of two blocks and the answer.
class BatchQueueAhead : public ::testing::Test {
 protected:
  static WaitingWork Work(uint64_t id) {
    WaitingWork work = MakeParts(id, 4, 2);
    work.ahead_count = 3;
    return work;
  }

  void Keep(const WaitingWork& work, int32_t part) {
    held_.Apply({.stored = {work.parts[part].blocks[0].name, work.parts[part].blocks[1].name}});
  }

  // The first part of the only work in the next batch.
  int32_t TakePart() {
    const Batch batch = queue_.Take(kStart);
    EXPECT_EQ(batch.works.size(), 1u);
    tokens_ = batch.distinct_tokens;
    return batch.works.empty() ? -1 : batch.works[0].first_part;
  }

  HeldBlocks held_;
  BatchQueue queue_{{.max_batch_tokens = 640, .held = &held_, .max_held_tokens = 400}};
  int64_t tokens_ = 0;
};

TEST_F(BatchQueueAhead, SkipsWhatIsHeldByItsTurn) {
  const WaitingWork work = Work(1);
  Keep(work, 0);
  queue_.Add(work);
  EXPECT_DOUBLE_EQ(queue_.waiting_flops(), 3 * 32 * kFlopsPerToken);
  EXPECT_EQ(TakePart(), 1);
  queue_.Prepare(kStart);
  Keep(work, 1);
  Keep(work, 2);  // somebody else's
  EXPECT_EQ(TakePart(), 3);
  EXPECT_TRUE(queue_.empty());
  EXPECT_EQ(queue_.waiting_flops(), 0);
}

TEST_F(BatchQueueAhead, GoesOnWhileItsPartsAreHeld) {
  const WaitingWork work = Work(1);
  queue_.Add(work);
  for (int32_t part = 0; part < 4; ++part) {
    EXPECT_EQ(TakePart(), part);
    EXPECT_EQ(tokens_, 32);
    queue_.Prepare(kStart);  // while it runs, as if it were held
    EXPECT_TRUE(queue_.is_prepared() || part == 3);
    Keep(work, part);
  }
}

TEST_F(BatchQueueAhead, ComputesTheRestAtOnceIfItsLastPartIsLost) {
  const WaitingWork work = Work(1);
  queue_.Add(work);
  EXPECT_EQ(TakePart(), 0);
  Keep(work, 0);
  EXPECT_EQ(TakePart(), 1);
  queue_.Prepare(kStart);  // part 2, but part 1 is not held when that begins
  EXPECT_EQ(TakePart(), 3);
  EXPECT_EQ(tokens_, 3 * 32);
  EXPECT_TRUE(queue_.empty());
  EXPECT_EQ(queue_.waiting_flops(), 0);
}

TEST_F(BatchQueueAhead, ComputesInPartsWhatWasHeldAndIsLostBeforeItsTurn) {
  const WaitingWork work = Work(1);
  for (int32_t part = 0; part < 3; ++part) {
    Keep(work, part);
  }
  queue_.Add(work);
  EXPECT_DOUBLE_EQ(queue_.waiting_flops(), 32 * kFlopsPerToken);
  held_.Apply({.is_cleared = true});
  EXPECT_EQ(TakePart(), 0);
  EXPECT_DOUBLE_EQ(queue_.waiting_flops(), 3 * 32 * kFlopsPerToken);
}

TEST_F(BatchQueueAhead, NoMoreGoAheadAtOnceThanTheCacheHolds) {
  const WaitingWork first = Work(1);
  queue_.Add(first);
  for (uint64_t id = 2; id <= 6; ++id) {
    queue_.Add(Work(id));
  }
  EXPECT_THAT(TakeIds(queue_), ElementsAre(1, 2));  // it is the turn of three of 96 tokens each
  Keep(first, 2);
  // The answer of work 1; all of work 2, which so needs no room any more: others have it.
  EXPECT_THAT(TakeIds(queue_), UnorderedElementsAre(1, 2));
  EXPECT_THAT(TakeIds(queue_), ElementsAre(3, 4));
}

// What they share is computed once and needs room once; what follows it is not.
TEST_F(BatchQueueAhead, WhoBeganWithAnothersPartNeedsRoomForItsOwn) {
  const WaitingWork first = Work(1);
  queue_.Add(first);
  for (uint64_t id = 2; id <= 10; ++id) {
    WaitingWork work = Work(id);
    work.parts[0] = first.parts[0];
    queue_.Add(std::move(work));
  }
  EXPECT_EQ(queue_.Take(kStart).works.size(), 10u);
  Keep(first, 0);
  EXPECT_THAT(TakeIds(queue_), ElementsAre(1, 2));  // three times 96 tokens are too many
}

// To hold it back would bar all that came after it, until others have answers.
TEST_F(BatchQueueAhead, WhoseTurnIsDueNeedsNoRoom) {
  BatchQueue queue({.ageing = 0, .held = &held_, .max_held_tokens = 400});
  for (uint64_t id = 1; id <= 3; ++id) {
    queue.Add(Work(id));
  }
  queue.Add(MakeWork(4, 1));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 2, 3, 4));
}

TEST_F(BatchQueueAhead, WhoIsFirstInLineNeedsNoRoom) {
  WaitingWork work = Work(1);
  for (uint64_t i = 2; i < 9; ++i) {
    work.parts[0].blocks.push_back({.name = {.high = 1 << 20, .low = i}, .token_count = 16});
  }
  queue_.Add(work);
  EXPECT_EQ(TakePart(), 0);
}

TEST(BatchQueue, APartLargerThanABatchRunsAlone) {
  BatchQueue queue({.max_batch_tokens = 160});
  queue.Add(MakeWork(1, 2));
  queue.Add(MakeWork(2, 40));
  queue.Add(MakeWork(3, 2));
  EXPECT_THAT(TakeIds(queue), ElementsAre(1, 3));
  EXPECT_THAT(TakeIds(queue), ElementsAre(2));
}

TEST(BatchQueue, ShortWorksDoNotWaitForALongOneInTheirPass) {
  BatchQueue queue({.max_batch_tokens = 640});
  for (uint64_t id = 1; id <= 5; ++id) {
    queue.Add(MakeWork(id, 1));
  }
  queue.Add(MakeWork(6, 6));
  EXPECT_EQ(queue.Take(kStart).works.size(), 5u);  // 11 blocks are more than a quarter
  queue.Add(MakeWork(7, 4));
  EXPECT_THAT(TakeIds(queue), ElementsAre(7, 6));
}

TEST(BatchQueue, ALongWorkJoinsShortOnesWhereGathersAreLonger) {
  BatchQueue queue({.max_batch_tokens = 640});
  queue.SetSpeed(1000, 10 * 16 * kFlopsPerToken);
  for (uint64_t id = 1; id <= 10; ++id) {
    queue.Add(MakeWork(id, 1));
  }
  queue.Add(MakeWork(11, 18));
  EXPECT_EQ(queue.Take(kStart).works.size(), 10u);
  // Below T* it costs the others nothing, and a pass of T* nothing either.
  queue.Add(MakeWork(12, 1));
  EXPECT_THAT(TakeIds(queue), ElementsAre(12, 11));
}

std::vector<uint64_t> Names(const std::vector<protocol::BlockHash>& blocks) {
  std::vector<uint64_t> names;
  for (const protocol::BlockHash& block : blocks) {
    names.push_back((block.high >> 20) * 10 + block.low);
  }
  return names;
}

TEST(BatchQueue, SaysWhichBlocksAreAwaitedUntilTheyAreTaken) {
  BatchQueue queue({.max_batch_tokens = 32});
  queue.Add(MakeWork(1, 2));
  queue.Add(MakeWork(2, 1));
  const Batch first = queue.Take(kStart);
  EXPECT_THAT(Ids(first), ElementsAre(2));
  EXPECT_THAT(Names(first.awaited.begun), ElementsAre(10, 11));
  EXPECT_THAT(first.awaited.ended, IsEmpty());
  const Batch second = queue.Take(kStart);
  EXPECT_THAT(second.awaited.begun, IsEmpty());
  EXPECT_THAT(Names(second.awaited.ended), ElementsAre(10, 11));
}

TEST(BatchQueue, WhatLeavesTheQueueIsNoLongerAwaited) {
  BatchQueue queue({.max_batch_tokens = 16});
  std::stop_source client;
  client.request_stop();
  WaitingWork cancelled = MakeWork(1, 1);
  cancelled.cancel = client.get_token();
  queue.Add(std::move(cancelled));
  EXPECT_THAT(queue.Take(kStart).awaited.begun, IsEmpty()) << "an empty batch is not looked at";
  queue.Add(MakeWork(2, 1));
  queue.Remove(2);
  queue.Add(MakeWork(3, 1));
  queue.Add(MakeWork(4, 1));
  queue.Add(MakeWork(5, 1));
  const Batch first = queue.Take(kStart);
  EXPECT_EQ(Ids(first).size(), 1u);
  EXPECT_EQ(first.awaited.begun.size(), 2u) << "who came and went is not told of";
  EXPECT_THAT(first.awaited.ended, IsEmpty());
  const uint64_t gone = Ids(first)[0] == 5 ? 4 : 5;
  queue.Remove(gone);
  const Batch second = queue.Take(kStart);
  EXPECT_THAT(second.awaited.begun, IsEmpty());
  EXPECT_EQ(second.awaited.ended.size(), 2u);
}

// While a pass hangs works come and give up, and nothing of them is kept.
TEST(BatchQueue, WhatCameAndWentBetweenTwoBatchesIsNotTold) {
  BatchQueue queue({});
  for (uint64_t id = 1; id <= 1000; ++id) {
    queue.Add(MakeWork(id, 3));
    queue.Remove(id);
  }
  queue.Add(MakeWork(1001, 1));
  const Batch batch = queue.Take(kStart);
  EXPECT_THAT(batch.awaited.begun, IsEmpty());
  EXPECT_THAT(batch.awaited.ended, IsEmpty());
}

TEST_F(BatchQueueAhead, IsAwaitedUntilItsLastPartIsTakenAndOnlyOnce) {
  const WaitingWork work = Work(1);
  queue_.Add(work);
  std::vector<protocol::BlockHash> begun;
  std::vector<protocol::BlockHash> ended;
  const auto take = [&] {
    const Batch batch = queue_.Take(kStart);
    begun.insert(begun.end(), batch.awaited.begun.begin(), batch.awaited.begun.end());
    ended.insert(ended.end(), batch.awaited.ended.begin(), batch.awaited.ended.end());
    return batch.works.empty() ? -1 : batch.works[0].first_part;
  };
  EXPECT_EQ(take(), 0);
  Keep(work, 0);
  EXPECT_EQ(take(), 1);
  EXPECT_EQ(begun.size(), 8u);
  EXPECT_THAT(ended, IsEmpty());
  EXPECT_EQ(take(), 3);  // part 1 was lost: all that is not held goes with the last
  EXPECT_EQ(ended.size(), 8u);
  EXPECT_THAT(Names(ended), UnorderedElementsAreArray(Names(begun)));
}

TEST(BatchQueue, WithoutACacheNothingIsAwaited) {
  BatchQueue queue({.max_held_tokens = 0});
  queue.Add(MakeWork(1, 2));
  const Batch batch = queue.Take(kStart);
  EXPECT_THAT(batch.awaited.begun, IsEmpty());
  EXPECT_THAT(batch.awaited.ended, IsEmpty());
}

TEST(BatchQueue, HoldsABatchBelowSaturationForCompany) {
  BatchQueue queue({.max_hold = milliseconds(20)});
  queue.SetSpeed(1e6, 64 * kFlopsPerToken);
  EXPECT_FALSE(queue.StartTime().has_value());
  queue.Add(MakeWork(1, 2));
  EXPECT_EQ(queue.StartTime(), kStart + milliseconds(20));
  WaitingWork urgent = MakeWork(2, 1);
  urgent.deadline = kStart + milliseconds(10);
  queue.Add(std::move(urgent));
  // 48 tokens take 480 us.
  EXPECT_EQ(queue.StartTime(), kStart + milliseconds(10) - std::chrono::microseconds(480));
  queue.Add(MakeWork(3, 1));
  EXPECT_EQ(queue.StartTime(), kStart);
}

TEST(BatchQueue, HoldsNothingWhereNothingIsGathered) {
  BatchQueue queue({.max_hold = milliseconds(20)});
  queue.Add(MakeWork(1, 2));
  EXPECT_EQ(queue.StartTime(), kStart);
}

}  // namespace
}  // namespace zp::scheduler
