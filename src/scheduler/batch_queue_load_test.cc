// A rank under load in virtual time, with the real costs of a real model: long works among short
// ones, and far more work than it can do. Nothing that was computed ahead is lost: the cache is
// large against what is under way (batch_queue_property_test loses it).
#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <random>

#include "gtest/gtest.h"
#include "protocol/work_cost.h"
#include "scheduler/batch_queue.h"
#include "scheduler/rank_speed.h"
#include "scheduler/scheduler.h"
#include "scheduler/work_parts.h"
#include "spec/model_shapes.h"

namespace zp::scheduler {
namespace {

using std::chrono::nanoseconds;

constexpr double kFlopsPerSecond = 1e14;
constexpr int64_t kMaxBatchTokens = 16'384;
const TimePoint kStart = TimePoint() + std::chrono::hours(1);

TimePoint After(double seconds) {
  return kStart + nanoseconds(static_cast<int64_t>(1e9 * seconds));
}

double SecondsOf(TimePoint time) { return std::chrono::duration<double>(time - kStart).count(); }

const spec::ModelSpec& Spec() {
  static const spec::ModelSpec spec = *spec::FindModelShape("qwen3-30b-a3b");
  return spec;
}

struct Machine {
  double overhead_seconds = 0;  // of each pass
  double gather_seconds = 0;    // no pass is shorter
  PlanLimits limits = {.max_batch_tokens = kMaxBatchTokens};

  double PassSeconds(double flops) const {
    return std::max(gather_seconds, overhead_seconds + flops / kFlopsPerSecond);
  }
};

class Rank {
 public:
  explicit Rank(const Machine& machine)
      : machine_(machine), queue_({.max_batch_tokens = kMaxBatchTokens}), speed_(1) {}

  void Add(uint64_t id, int token_count, double seconds) {
    protocol::Work work{.sequences = {{.pooling = protocol::Pooling::kLastToken}}};
    for (int i = 0; i < token_count; ++i) {
      work.sequences[0].tokens.push_back(static_cast<protocol::TokenId>(random_() >> 1));
    }
    WorkPlan plan = PlanParts(Spec(), protocol::BlockHasher(7), work, machine_.limits);
    queue_.Add({.id = id,
                .parts = std::move(plan.parts),
                .ahead_count = static_cast<int32_t>(plan.cuts.ahead_ends.size()),
                .arrival = After(seconds)});
  }

  // When the next pass starts if nothing else comes; infinite if nothing waits.
  double NextStart() const {
    const std::optional<TimePoint> start = queue_.StartTime();
    return start.has_value() ? std::max(free_at_, SecondsOf(*start))
                             : std::numeric_limits<double>::infinity();
  }

  // Runs one pass; calls on_answer(id, seconds) for the works that are done after it.
  template <typename OnAnswer>
  void RunPass(OnAnswer on_answer) {
    const double start = NextStart();
    const Batch batch = queue_.Take(After(start));
    const double seconds = machine_.PassSeconds(batch.flops);
    free_at_ = start + seconds;
    running_flops_ = batch.asked_flops;
    served_flops_ += batch.asked_flops;
    engine::PassReport report;
    report.flops = batch.flops;
    speed_.Learn(report, batch.asked_flops, seconds);
    queue_.SetSpeed(speed_.flops_per_s(), machine_.gather_seconds * kFlopsPerSecond);
    queue_.Prepare(After(start));
    for (const TakenWork& work : batch.works) {
      if (work.is_last) {
        on_answer(work.id, free_at_);
      }
    }
  }

  const BatchQueue& queue() const { return queue_; }
  double outstanding_flops() const { return queue_.waiting_flops() + running_flops_; }
  double served_flops() const { return served_flops_; }
  double free_at() const { return free_at_; }
  double retry_seconds() const { return speed_.SecondsFor(outstanding_flops()); }

 private:
  const Machine machine_;
  BatchQueue queue_;
  RankSpeed speed_;
  std::mt19937 random_{1};
  double free_at_ = 0;
  double running_flops_ = 0;
  double served_flops_ = 0;
};

double FlopsOfTokens(int token_count) {
  return protocol::FlopsOf(Spec(),
                           {.tokens = std::vector<protocol::TokenId>(token_count),
                            .pooling = protocol::Pooling::kLastToken},
                           0);
}

constexpr int kShortTokens = 256;
constexpr int kLongTokens = 16'384;
constexpr int kLongEvery = 100;

enum class LongOnes { kAmongThem, kLeftOut, kNone };

// 99th percentiles of latencies.
struct TailSeconds {
  double of_short = 0;
  double of_long = 0;
};

double P99(std::vector<double>& latencies) {
  std::sort(latencies.begin(), latencies.end());
  return latencies.empty() ? 0 : latencies[latencies.size() * 99 / 100];
}

// At `rate` works a second.
TailSeconds MeasureTails(const Machine& machine, double rate, LongOnes long_ones) {
  std::mt19937 random(3);
  std::exponential_distribution<double> gap(rate);
  Rank rank(machine);
  struct Arrival {
    double seconds = 0;
    bool is_long = false;
  };
  std::map<uint64_t, Arrival> arrivals;
  std::vector<double> short_latencies;
  std::vector<double> long_latencies;
  const auto on_answer = [&](uint64_t id, double seconds) {
    const auto found = arrivals.find(id);
    (found->second.is_long ? long_latencies : short_latencies)
        .push_back(seconds - found->second.seconds);
    arrivals.erase(found);
  };
  double now = 0;
  for (uint64_t id = 1; id <= 10'000; ++id) {
    now += gap(random);
    while (rank.NextStart() <= now) {
      rank.RunPass(on_answer);
    }
    const bool is_long = random() % kLongEvery == 0 && long_ones != LongOnes::kNone;
    if (!is_long || long_ones == LongOnes::kAmongThem) {
      arrivals[id] = {.seconds = now, .is_long = is_long};
      rank.Add(id, is_long ? kLongTokens : kShortTokens, now);
    }
  }
  while (!rank.queue().empty()) {
    rank.RunPass(on_answer);
  }
  EXPECT_TRUE(arrivals.empty());
  return {.of_short = P99(short_latencies), .of_long = P99(long_latencies)};
}

// Works a second at 80 % of what full passes achieve of works that have `tokens` on average.
double RateAt80Percent(const Machine& machine, double tokens, double flops) {
  const double works_per_pass = kMaxBatchTokens / tokens;
  return 0.8 * works_per_pass / machine.PassSeconds(flops * works_per_pass);
}

struct MixedLatency {
  TailSeconds with_long;
  double left_out = 0;    // the same short ones, and less load
  double short_only = 0;  // the same load, and all of it short
};

MixedLatency MeasureMixed(const Machine& machine) {
  constexpr double kLongShare = 1.0 / kLongEvery;
  const double short_flops = FlopsOfTokens(kShortTokens);
  const double rate =
      RateAt80Percent(machine,
                      kLongShare * kLongTokens + (1 - kLongShare) * kShortTokens,
                      kLongShare * FlopsOfTokens(kLongTokens) + (1 - kLongShare) * short_flops);
  const double short_rate = RateAt80Percent(machine, kShortTokens, short_flops);
  return {.with_long = MeasureTails(machine, rate, LongOnes::kAmongThem),
          .left_out = MeasureTails(machine, rate, LongOnes::kLeftOut).of_short,
          .short_only = MeasureTails(machine, short_rate, LongOnes::kNone).of_short};
}

void Record(const std::string& name, const MixedLatency& latency) {
  const auto milliseconds = [](double seconds) { return std::to_string(1e3 * seconds); };
  ::testing::Test::RecordProperty(name + "_with_long_p99_ms",
                                  milliseconds(latency.with_long.of_short));
  ::testing::Test::RecordProperty(name + "_left_out_p99_ms", milliseconds(latency.left_out));
  ::testing::Test::RecordProperty(name + "_short_only_p99_ms", milliseconds(latency.short_only));
  ::testing::Test::RecordProperty(name + "_of_long_p99_ms",
                                  milliseconds(latency.with_long.of_long));
}

TEST(LongAmongShort, KeepTheShortOnesFastWhereBanksAreGathered) {
  // T* is the compute of 8,192 tokens in short works.
  Machine machine = {.gather_seconds = FlopsOfTokens(kShortTokens) * 32 / kFlopsPerSecond};
  machine.limits.ahead_tokens = 8192;
  machine.limits.max_held_tokens = 1'000'000;
  const MixedLatency latency = MeasureMixed(machine);
  Record("gathered", latency);
  EXPECT_LE(latency.with_long.of_short, 3 * latency.left_out);
}

// By what a pass costs beside its own tokens, in tokens.
class LongAmongShortInMemory : public ::testing::TestWithParam<int> {};

TEST_P(LongAmongShortInMemory, KeepTheShortOnesFast) {
  Machine machine = {.overhead_seconds = FlopsOfTokens(GetParam()) / kFlopsPerSecond};
  machine.limits.ahead_tokens = SchedulerOptions{}.ahead_tokens;
  machine.limits.max_held_tokens = 1'000'000;
  const MixedLatency latency = MeasureMixed(machine);
  Record("in_memory", latency);
  machine.limits.ahead_tokens = 0;
  const MixedLatency uncut = MeasureMixed(machine);
  Record("uncut", uncut);
  EXPECT_LE(latency.with_long.of_short, 3 * latency.left_out);
  EXPECT_LE(latency.with_long.of_short, latency.short_only);
  EXPECT_LE(latency.with_long.of_short, 0.3 * uncut.with_long.of_short);
}

INSTANTIATE_TEST_SUITE_P(Overheads, LongAmongShortInMemory, ::testing::Values(128, 256, 512));

TEST(Overload, KeepsItsSpeedAndSaysRightlyWhenToComeAgain) {
  const Machine machine = {.overhead_seconds = FlopsOfTokens(512) / kFlopsPerSecond};
  constexpr int64_t kMaxQueueTokens = 300'000;
  Rank rank(machine);
  std::mt19937 random(5);
  std::map<uint64_t, int> waiting_tokens;
  int64_t queue_tokens = 0;
  int64_t most_queue_tokens = 0;
  // What each refused one was told, and how much will have been served once that is over.
  struct Refusal {
    double seconds = 0;
    double retry_seconds = 0;
    double served_flops = 0;
  };
  std::deque<Refusal> refusals;
  int checked = 0;
  const auto run_pass = [&] {
    rank.RunPass([&](uint64_t id, double) {
      queue_tokens -= waiting_tokens.at(id);
      waiting_tokens.erase(id);
    });
    while (!refusals.empty() && refusals.front().served_flops <= rank.served_flops()) {
      const Refusal& refusal = refusals.front();
      const double actual_seconds = rank.free_at() - refusal.seconds;
      EXPECT_NEAR(refusal.retry_seconds, actual_seconds, 0.3 * actual_seconds);
      refusals.pop_front();
      ++checked;
    }
  };

  const double full_rate = kMaxBatchTokens / machine.PassSeconds(FlopsOfTokens(kShortTokens) * 64);
  std::exponential_distribution<double> gap(3 * full_rate / (300 + 8));  // three times too much
  double now = 0;
  double busy_begin = 0;
  double served_at_begin = 0;
  for (uint64_t id = 1; id <= 30'000; ++id) {
    now += gap(random);
    while (rank.NextStart() <= now) {
      run_pass();
    }
    const int tokens = 8 + static_cast<int>(random() % 600);
    if (queue_tokens + tokens > kMaxQueueTokens) {
      if (busy_begin == 0) {
        busy_begin = rank.free_at();
        served_at_begin = rank.served_flops();
      }
      refusals.push_back(
          {now, rank.retry_seconds(), rank.served_flops() + rank.outstanding_flops()});
      continue;
    }
    waiting_tokens[id] = tokens;
    queue_tokens += tokens;
    most_queue_tokens = std::max(most_queue_tokens, queue_tokens);
    rank.Add(id, tokens, now);
  }
  ASSERT_GT(busy_begin, 0);
  const double flops_per_s =
      (rank.served_flops() - served_at_begin) / (rank.free_at() - busy_begin);
  const double most_flops_per_s = full_rate / kShortTokens * FlopsOfTokens(kShortTokens);
  EXPECT_GE(flops_per_s, 0.95 * most_flops_per_s);
  EXPECT_LE(most_queue_tokens, kMaxQueueTokens);
  while (!rank.queue().empty()) {
    run_pass();
  }
  EXPECT_GT(checked, 1000);

  // All is as if nothing had been: the next work starts at once.
  EXPECT_EQ(rank.queue().waiting_flops(), 0);
  rank.Add(1, 100, rank.free_at() + 1);
  EXPECT_NEAR(rank.NextStart(), rank.free_at() + 1, 1e-6);
}

}  // namespace
}  // namespace zp::scheduler
