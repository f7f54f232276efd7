// Random works in virtual time: whatever comes in whatever order, the promises of batch_queue.h
// hold at every pass. For every other seed what was computed ahead may be lost between two passes.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "gtest/gtest.h"
#include "scheduler/batch_queue.h"

namespace zp::scheduler {
namespace {

using std::chrono::microseconds;

constexpr double kFlopsPerToken = 1e6;
constexpr double kFlopsPerSecond = 1e10;
constexpr int64_t kMaxBatchTokens = 2048;
constexpr double kAgeing = 6;
constexpr int kWorkCount = 600;

class Simulation {
 public:
  explicit Simulation(uint32_t seed)
      : random_(seed),
        max_hold_(seed % 2 == 0 ? microseconds(0) : microseconds(30'000)),
        saturation_flops_(seed % 3 == 0 ? 0 : 800 * kFlopsPerToken),
        loses_(seed % 4 >= 2),
        queue_({.max_batch_tokens = kMaxBatchTokens,
                .max_hold = max_hold_,
                .ageing = kAgeing,
                .held = loses_ ? &held_ : nullptr,
                .max_held_tokens = 6000}) {
    queue_.SetSpeed(kFlopsPerSecond, saturation_flops_);
  }

  // Works come in bursts while passes run, until all were added and nothing waits.
  void Run() {
    while (next_id_ <= kWorkCount || queue_.work_count() > 0) {
      AddSome();
      CancelSome();
      if (Below(3) > 0) {
        queue_.Prepare(now_);
        CheckDropped();
        AddSome();
        CancelSome();
      }
      if (const std::optional<TimePoint> start = queue_.StartTime(); start.has_value()) {
        CheckStart(*start);
        now_ = std::max(now_, *start);
        LoseSome();
        RunPass();
      }
      if (::testing::Test::HasFailure()) {
        return;
      }
    }
    CheckNothingIsLost();
  }

 private:
  struct Record {
    WaitingWork work;  // without blocks
    double flops = 0;
    double overtaken_flops = 0;
    int32_t taken_parts = 0;
    int32_t held_parts = 0;  // of those computed ahead
    bool is_dropped = false;

    bool is_waiting() const {
      return !is_dropped && taken_parts < static_cast<int32_t>(work.parts.size());
    }
    bool has_lost() const { return held_parts < std::min(taken_parts, work.ahead_count); }
  };

  int Below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  PartCost RandomPart(uint64_t name, int most_blocks, bool may_share) {
    PartCost part;
    const uint64_t family = Below(6);
    const int shared_blocks = !may_share || Below(3) == 0 ? 0 : Below(12);
    const int blocks = shared_blocks + 1 + Below(most_blocks);
    for (int i = 0; i < blocks; ++i) {
      part.blocks.push_back(
          {.name = {.high = i < shared_blocks ? ~family : name, .low = static_cast<uint64_t>(i)},
           .token_count = i + 1 < blocks ? 16 : 1 + Below(16)});
    }
    part.flops = kFlopsPerToken * static_cast<double>(CountTokens(part.blocks));
    return part;
  }

  void AddSome() {
    const int count = std::min(Below(8) == 0 ? 60 : Below(8), kWorkCount + 1 - next_id_);
    for (int i = 0; i < count; ++i) {
      const auto id = static_cast<uint64_t>(next_id_++);
      WaitingWork work = {.id = id, .arrival = now_, .priority = Below(10) < 8 ? 0 : Below(3) - 1};
      const int part_count = Below(12) == 0 ? 2 + Below(30) : 1;
      const int most_blocks = Below(15) == 0 ? 160 : 16;
      work.ahead_count = Below(2) == 0 ? part_count - 1 : 0;
      double flops = 0;
      for (int part = 0; part < part_count; ++part) {
        // Parts computed ahead are a beginning, piece by piece: only the first can be another's.
        const bool may_share = part == 0 || work.ahead_count == 0;
        work.parts.push_back(RandomPart((id << 20) + part, most_blocks, may_share));
        flops += work.parts.back().flops;
      }
      if (Below(5) == 0) {
        work.deadline = now_ + microseconds(Below(400'000));
      }
      work.cancel = clients_[id].get_token();
      records_[id] = {.work = work, .flops = flops};
      queue_.Add(std::move(work));
    }
  }

  void CancelSome() {
    if (Below(3) == 0 && next_id_ > 1) {
      clients_[1 + Below(next_id_ - 1)].request_stop();
    }
  }

  void CheckStart(TimePoint start) {
    TimePoint oldest = TimePoint::max();
    for (const auto& [id, record] : records_) {
      if (record.is_waiting()) {
        oldest = std::min(oldest, record.work.arrival);
        if (record.work.deadline.has_value()) {
          EXPECT_LE(start, std::max(*record.work.deadline, record.work.arrival)) << id;
        }
      }
    }
    EXPECT_LE(start, oldest + max_hold_);
  }

  void RunPass() {
    const Batch batch = queue_.Take(now_);
    CheckDropped();
    CheckAwaited(batch.awaited);
    std::set<protocol::BlockHash, decltype(&Before)> distinct(&Before);
    int64_t distinct_tokens = 0;
    for (const TakenWork& taken : batch.works) {
      Record& record = records_.at(taken.id);
      EXPECT_FALSE(record.is_dropped) << taken.id;
      EXPECT_FALSE(record.work.cancel.stop_requested()) << taken.id;
      EXPECT_FALSE(record.work.deadline.has_value() && *record.work.deadline < now_) << taken.id;
      const bool is_at_once = loses_ && record.has_lost();
      EXPECT_EQ(taken.first_part, is_at_once ? record.work.ahead_count : record.taken_parts)
          << taken.id;
      ASSERT_GT(taken.part_count, 0) << taken.id;
      EXPECT_TRUE(taken.part_count == 1 || record.work.ahead_count == 0) << taken.id;
      const int32_t end_part = taken.first_part + taken.part_count;
      for (int32_t part = is_at_once ? record.held_parts : taken.first_part; part < end_part;
           ++part) {
        for (const TokenBlock& block : record.work.parts[part].blocks) {
          distinct_tokens += distinct.insert(block.name).second ? block.token_count : 0;
        }
      }
      record.taken_parts = end_part;
      if (loses_ && end_part <= record.work.ahead_count) {
        held_.Apply({.stored = {LastName(record, end_part - 1)}});
        record.held_parts = end_part;
      }
      EXPECT_EQ(taken.is_last, !record.is_waiting()) << taken.id;
    }
    EXPECT_EQ(batch.distinct_tokens, distinct_tokens);
    const bool is_one_part = batch.works.size() == 1 && batch.works[0].part_count == 1;
    EXPECT_TRUE(batch.distinct_tokens <= kMaxBatchTokens || is_one_part) << batch.distinct_tokens;
    CheckOrder(batch);
    now_ += microseconds(static_cast<int64_t>(1e6 * batch.flops / kFlopsPerSecond) + 100);
  }

  static protocol::BlockHash LastName(const Record& record, int32_t part) {
    return record.work.parts[part].blocks.back().name;
  }

  // Nothing ends that has not begun, and what nobody waits for any more has ended as often.
  void CheckAwaited(const protocol::AwaitedChanges& changes) {
    for (const protocol::BlockHash& name : changes.begun) {
      ++awaited_[name];
    }
    for (const protocol::BlockHash& name : changes.ended) {
      const auto found = awaited_.find(name);
      ASSERT_NE(found, awaited_.end());
      if (--found->second == 0) {
        awaited_.erase(found);
      }
    }
  }

  // Of some works the last parts that are held, as a cache does.
  void LoseSome() {
    for (auto& [id, record] : records_) {
      while (record.held_parts > 0 && Below(20) == 0) {
        held_.Apply({.removed = {LastName(record, --record.held_parts)}});
      }
    }
  }

  static bool Before(const protocol::BlockHash& a, const protocol::BlockHash& b) {
    return a.high != b.high ? a.high < b.high : a.low < b.low;
  }

  // Against all that still waits and has no part in the batch.
  void CheckOrder(const Batch& batch) {
    std::set<uint64_t> ids;
    for (const TakenWork& taken : batch.works) {
      ids.insert(taken.id);
    }
    for (auto& [id, waiting] : records_) {
      if (!waiting.is_waiting() || ids.contains(id)) {
        continue;
      }
      for (const TakenWork& taken : batch.works) {
        const Record& record = records_.at(taken.id);
        EXPECT_LE(record.work.priority, waiting.work.priority) << taken.id << " before " << id;
        if (record.work.priority == waiting.work.priority && taken.id > id) {
          for (int32_t part = 0; part < taken.part_count; ++part) {
            waiting.overtaken_flops += record.work.parts[taken.first_part + part].flops;
          }
        }
      }
      EXPECT_LE(waiting.overtaken_flops, kAgeing * waiting.flops * (1 + 1e-9)) << id;
    }
  }

  void CheckDropped() {
    for (const DroppedWork& dropped : queue_.TakeDropped()) {
      Record& record = records_.at(dropped.id);
      EXPECT_TRUE(record.is_waiting()) << dropped.id;
      record.is_dropped = true;
      EXPECT_TRUE(dropped.reason == DropReason::kCancelled
                      ? record.work.cancel.stop_requested()
                      : record.work.deadline.has_value() && *record.work.deadline < now_);
    }
  }

  void CheckNothingIsLost() {
    for (const auto& [id, record] : records_) {
      EXPECT_FALSE(record.is_waiting()) << id;
    }
    EXPECT_EQ(queue_.waiting_flops(), 0);
    EXPECT_FALSE(queue_.StartTime().has_value());
  }

  std::mt19937 random_;
  const microseconds max_hold_;
  const double saturation_flops_;
  const bool loses_;
  HeldBlocks held_;
  std::map<protocol::BlockHash, int, decltype(&Before)> awaited_{&Before};
  BatchQueue queue_;
  TimePoint now_ = TimePoint() + std::chrono::hours(1);
  int next_id_ = 1;
  std::map<uint64_t, Record> records_;
  std::map<uint64_t, std::stop_source> clients_;
};

class RandomWorks : public ::testing::TestWithParam<uint32_t> {};

TEST_P(RandomWorks, FindThePromisesKept) { Simulation(GetParam()).Run(); }

INSTANTIATE_TEST_SUITE_P(Seeds, RandomWorks, ::testing::Range(0u, 30u));

}  // namespace
}  // namespace zp::scheduler
