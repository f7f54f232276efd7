// Bit for bit the same answers with a prefix cache as without one, whatever it holds, evicts and
// forgets on the way.
#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "engine/odd_spec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protocol/work_cost.h"

namespace zp::engine {
namespace {

using protocol::kBlockTokens;
using protocol::Pooling;
using protocol::Row;
using protocol::RowAsk;
using protocol::Sequence;
using protocol::Work;
using spec::DType;
using spec::TokenId;
using Tokens = std::vector<TokenId>;

constexpr uint64_t kBlockKey = 77;

const spec::ModelSpec& TestSpec() {
  static const spec::ModelSpec spec = OddSpec({false, true, true, false, true});
  return spec;
}

std::shared_ptr<const HostModel> LoadHost(DType dtype) {
  auto host = HostModel::Load(*checkpoint::CreateSynthetic(TestSpec(), 7),
                              {.activation_dtype = dtype, .thread_count = 2});
  EXPECT_TRUE(host.ok()) << host.status();
  return *std::move(host);
}

// K and V of 16 tokens, all layers, as the kernels lay them out: the least budget that is taken.
int64_t BlockBytes(const std::shared_ptr<const HostModel>& host) {
  base::ThreadPool pool(1);
  const auto kernels = *host->CreateKernels(pool);
  return TestSpec().layer_count *
         static_cast<int64_t>(kernels->kv_block_bytes(
             {.query_head_count = 7, .kv_head_count = 1, .head_dim = 24, .scale = 1}));
}

std::unique_ptr<Engine> MakeEngine(const std::shared_ptr<const HostModel>& host,
                                   EngineOptions options,
                                   const MoeFactory& make_moe = nullptr) {
  options.block_key = kBlockKey;
  auto engine = Engine::Create(host, options, make_moe);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::vector<float> Numbers(const protocol::WorkResult& result) {
  std::vector<float> numbers;
  for (const auto& sequence : result.sequences) {
    for (const Row& row : sequence.rows) {
      numbers.insert(numbers.end(), row.column_logits.begin(), row.column_logits.end());
      numbers.push_back(row.log_sum_exp);
      for (const auto& top : row.top) {
        numbers.push_back(static_cast<float>(top.token));
        numbers.push_back(top.logit);
      }
    }
    numbers.insert(numbers.end(), sequence.pooled.begin(), sequence.pooled.end());
  }
  return numbers;
}

BatchResult RunAll(Engine& engine, const std::vector<Work>& works) {
  std::vector<const Work*> batch;
  for (const Work& work : works) {
    batch.push_back(&work);
  }
  return engine.Run(batch);
}

RowAsk LabelsAt(int32_t position) {
  return {.position = position, .columns = {5, 3, 300}, .full_vocabulary = false, .top_count = 0};
}
RowAsk EverythingAt(int32_t position, TokenId column) {
  return {.position = position, .columns = {column}, .full_vocabulary = true, .top_count = 3};
}

// A stream of works over a few stems, so that prefixes come back whole, in part, and parted inside
// a block.
class WorkStream {
 public:
  explicit WorkStream(uint32_t seed) : random_(seed) {
    for (int i = 0; i < 4; ++i) {
      stems_.push_back(RandomTokens(150));
    }
  }

  std::vector<Work> Next() {
    std::vector<Work> works(1 + random_() % 5);
    for (Work& work : works) {
      work.cache_salt = std::array<std::string, 4>{"", "", "a", "b"}[random_() % 4];
      for (size_t count = 1 + random_() % 3; count > 0; --count) {
        work.sequences.push_back(RandomSequence());
      }
    }
    return works;
  }

 private:
  Tokens RandomTokens(size_t count) {
    Tokens tokens(count);
    std::ranges::generate(tokens, [&] { return static_cast<TokenId>(random_() % 301); });
    return tokens;
  }

  Sequence RandomSequence() {
    Sequence sequence{.tokens = stems_[random_() % stems_.size()], .rows = {}};
    // Often whole blocks of it, which may be all that is asked for.
    const size_t kept = random_() % 3 == 0 ? random_() % 10 * 16 : random_() % 150;
    sequence.tokens.resize(kept);
    const Tokens tail = RandomTokens(kept == 0 ? 1 + random_() % 30 : random_() % 20);
    sequence.tokens.insert(sequence.tokens.end(), tail.begin(), tail.end());
    Ask(sequence);
    return sequence;
  }

  void Ask(Sequence& sequence) {
    const auto length = static_cast<int32_t>(sequence.tokens.size());
    const auto somewhere = static_cast<int32_t>(random_() % length);
    switch (random_() % 6) {
      case 0:
        sequence.rows.push_back(LabelsAt(length - 1));
        break;
      case 1:  // a continuation
        for (int32_t position = std::max(0, length - 5); position < length; ++position) {
          sequence.rows.push_back(EverythingAt(position, sequence.tokens[position]));
        }
        break;
      case 2:  // echo
        for (int32_t position = 0; position < length; ++position) {
          sequence.rows.push_back(EverythingAt(position, sequence.tokens[position]));
        }
        break;
      case 3:
        sequence.pooling = Pooling::kLastToken;
        break;
      case 4:
        sequence.pooling = Pooling::kMean;
        sequence.rows.push_back(LabelsAt(somewhere));
        break;
      default:  // somewhere, and what comes after is for nothing
        sequence.rows.push_back(EverythingAt(somewhere, 0));
    }
  }

  std::mt19937 random_;
  std::vector<Tokens> stems_;
};

// What the events say that the cache holds, and what follows for a pass: which tokens are computed.
class EventLog {
 public:
  void Replay(const protocol::CacheEvents& events) {
    for (const protocol::BlockHash& name : events.removed) {
      EXPECT_EQ(names_.erase({name.high, name.low}), 1u) << "removed, but was not there";
    }
    for (const protocol::BlockHash& name : events.stored) {
      EXPECT_TRUE(names_.insert({name.high, name.low}).second) << "stored twice";
    }
  }

  // Each distinct prefix of the works, by salt, and whether some sequence needs it computed.
  using Prefixes = std::map<std::pair<std::string, Tokens>, bool>;
  Prefixes NeededPrefixes(const std::vector<Work>& works) const {
    Prefixes is_needed;
    for (const Work& work : works) {
      for (const Sequence& sequence : work.sequences) {
        const auto begin = protocol::SkippableTokens(sequence, HeldTokens(work, sequence));
        Tokens prefix;
        for (const TokenId token : sequence.tokens) {
          prefix.push_back(token);
          is_needed[{work.cache_salt, prefix}] |= std::ssize(prefix) > begin;
        }
      }
    }
    return is_needed;
  }

  int64_t block_count() const { return std::ssize(names_); }

 private:
  int32_t HeldTokens(const Work& work, const Sequence& sequence) const {
    int32_t held = 0;
    for (const auto& name :
         protocol::BlockHasher(kBlockKey).Chain(work.cache_salt, sequence.tokens)) {
      if (!names_.contains({name.high, name.low})) {
        break;
      }
      held += kBlockTokens;
    }
    return held;
  }

  std::set<std::pair<uint64_t, uint64_t>> names_;
};

void ExpectSameAnswers(const BatchResult& expected, const BatchResult& actual) {
  ASSERT_EQ(expected.works.size(), actual.works.size());
  for (size_t i = 0; i < expected.works.size(); ++i) {
    ASSERT_TRUE(actual.works[i].ok()) << actual.works[i].status();
    ASSERT_EQ(Numbers(*actual.works[i]), Numbers(*expected.works[i])) << "work " << i;
  }
}

// Computed and cached tokens are those that the events announced before the pass.
void ExpectHonestReport(const EventLog& log,
                        const std::vector<Work>& works,
                        const BatchResult& result) {
  const EventLog::Prefixes is_needed = log.NeededPrefixes(works);
  const auto computed =
      std::ranges::count_if(is_needed, [](const auto& prefix) { return prefix.second; });
  EXPECT_EQ(result.report.computed_tokens, computed);
  EXPECT_EQ(result.report.cached_tokens, std::ssize(is_needed) - computed);
  EXPECT_EQ(result.report.cache_queried_tokens, std::ssize(is_needed));
  protocol::Usage sum;
  for (const auto& work : result.works) {
    EXPECT_LE(work->usage.computed_tokens + work->usage.cached_tokens, work->usage.prompt_tokens);
    EXPECT_GE(work->usage.cached_tokens, 0);
    sum.computed_tokens += work->usage.computed_tokens;
    sum.cached_tokens += work->usage.cached_tokens;
    sum.flops += work->usage.flops;
  }
  EXPECT_EQ(sum.computed_tokens, result.report.computed_tokens);
  EXPECT_EQ(sum.cached_tokens, result.report.cached_tokens);
  EXPECT_NEAR(sum.flops, result.report.flops, 1e-9 * sum.flops);
}

class PrefixCacheTest : public testing::TestWithParam<DType> {
 protected:
  const uint32_t seed_ = std::random_device{}();
  const std::shared_ptr<const HostModel> host_ = LoadHost(GetParam());
  const int64_t block_bytes_ = BlockBytes(host_);
};

TEST_P(PrefixCacheTest, AnswersAreBitEqualOverALongStreamOfWorks) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto plain = MakeEngine(host_, {.thread_count = 2});
  struct Cached {
    int64_t blocks;
    std::unique_ptr<Engine> engine;
    EventLog log = {};
    int64_t cached_tokens = 0;
    int64_t evicted_blocks = 0;
  };
  std::vector<Cached> engines;
  for (const int64_t blocks : {1, 7, 40, 4000}) {
    engines.push_back({blocks,
                       MakeEngine(host_,
                                  {.thread_count = 1 + static_cast<int>(blocks % 2),
                                   .chunk_tokens = blocks == 40 ? 23 : 8192,
                                   .prefix_cache_bytes = blocks * block_bytes_ + 1,
                                   .prefix_cache_quota = blocks == 40 ? 0.3 : 1.0})});
  }
  WorkStream stream(seed_);
  for (int pass = 0; pass < 24; ++pass) {
    const std::vector<Work> works = stream.Next();
    const BatchResult expected = RunAll(*plain, works);
    EXPECT_EQ(expected.report.cached_tokens, 0);
    for (Cached& cached : engines) {
      SCOPED_TRACE(testing::Message() << "pass " << pass << ", " << cached.blocks << " blocks");
      const BatchResult actual = RunAll(*cached.engine, works);
      ASSERT_NO_FATAL_FAILURE(ExpectSameAnswers(expected, actual));
      ExpectHonestReport(cached.log, works, actual);
      cached.log.Replay(actual.report.cache_events);
      cached.cached_tokens += actual.report.cached_tokens;
      cached.evicted_blocks += std::ssize(actual.report.cache_events.removed);
      ASSERT_EQ(cached.log.block_count() * block_bytes_, actual.report.cache_held_bytes);
      ASSERT_LE(cached.log.block_count(), cached.blocks);
    }
  }
  EXPECT_EQ(engines.back().evicted_blocks, 0);
  for (const Cached& cached : engines) {
    EXPECT_TRUE(cached.cached_tokens > 0 || cached.blocks < 40) << cached.blocks << " blocks";
    EXPECT_LE(cached.cached_tokens, engines.back().cached_tokens);
    EXPECT_TRUE(cached.blocks == 4000 || cached.evicted_blocks > 0) << cached.blocks << " blocks";
  }
}

TEST_P(PrefixCacheTest, AnEchoIsRecomputedFromTheBlockBeforeItsFirstRow) {
  const auto engine = MakeEngine(host_, {.prefix_cache_bytes = 100 * block_bytes_});
  Tokens tokens(100);
  std::mt19937 random(seed_);
  std::ranges::generate(tokens, [&] { return static_cast<TokenId>(random() % 301); });
  const Work last{.request_id = "",
                  .sequences = {{.tokens = tokens, .rows = {EverythingAt(99, 1)}}}};
  Work echo = last;
  echo.sequences[0].rows.insert(echo.sequences[0].rows.begin(), EverythingAt(50, 1));
  const auto run = [&](const std::vector<Work>& works) {
    const PassReport report = RunAll(*engine, works).report;
    return std::pair(report.computed_tokens, report.cached_tokens);
  };
  EXPECT_EQ(run({last}), std::pair(int64_t{100}, int64_t{0}));
  EXPECT_EQ(run({last}), std::pair(int64_t{4}, int64_t{96}));
  EXPECT_EQ(run({echo}), std::pair(int64_t{52}, int64_t{48}));
  EXPECT_EQ(run({last, echo, last}), std::pair(int64_t{52}, int64_t{48})) << "no row twice";
}

// Nor does what a request costs tell a tenant which prompts of others ran beside it.
TEST_P(PrefixCacheTest, TenantsShareNothing) {
  Work mine{.request_id = "", .sequences = {{.tokens = Tokens(64, 9), .rows = {LabelsAt(63)}}}};
  mine.cache_salt = "mine";
  Work yours = mine;
  yours.cache_salt = "yours";
  const auto costs = [](const BatchResult& result, size_t work) {
    const protocol::Usage& usage = result.works[work]->usage;
    return std::tuple(usage.computed_tokens, usage.cached_tokens, usage.flops);
  };
  for (const int64_t blocks : {0, 100}) {
    const auto engine = MakeEngine(host_, {.prefix_cache_bytes = blocks * block_bytes_});
    const BatchResult alone = RunAll(*engine, {yours});
    EXPECT_EQ(alone.report.computed_tokens, 64);
    RunAll(*engine, {mine});
    const int64_t held = blocks == 0 ? 0 : 48;
    EXPECT_EQ(RunAll(*engine, {mine}).report.cached_tokens, held);
    const BatchResult together = RunAll(*engine, {yours, mine, mine});
    EXPECT_EQ(together.report.computed_tokens, 2 * (64 - held));
    EXPECT_EQ(costs(together, 0), costs(RunAll(*engine, {yours}), 0));
    Work stranger = mine;
    stranger.cache_salt = "stranger";
    const BatchResult guess = RunAll(*engine, {mine, stranger});
    EXPECT_EQ(costs(guess, 1), costs(alone, 0));
    EXPECT_EQ(Numbers(*guess.works[1]), Numbers(*guess.works[0]));
  }
}

TEST_P(PrefixCacheTest, SaysHowManyTokensItHasRoomFor) {
  EXPECT_EQ(MakeEngine(host_, {})->prefix_cache_tokens(), 0);
  const auto engine = MakeEngine(host_, {.prefix_cache_bytes = 8 * block_bytes_ - 1});
  EXPECT_EQ(engine->prefix_cache_tokens(), 7 * 16);
  // No less: of one work, whose row is behind all of them, that many come back.
  Work work{.request_id = "", .sequences = {{.tokens = Tokens(300, 5), .rows = {LabelsAt(299)}}}};
  RunAll(*engine, {work});
  EXPECT_EQ(RunAll(*engine, {work}).report.cached_tokens, 7 * 16);
}

TEST_P(PrefixCacheTest, RefusesABudgetThatHoldsNothing) {
  const auto engine = Engine::Create(host_, {.prefix_cache_bytes = block_bytes_ - 1});
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Engine::Create(host_, {.prefix_cache_bytes = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Experts that can be told to fail, or to put something that is not a number into a row.
struct Faults {
  int32_t failing_layer = -1;
  int32_t poisoned_layer = -1;
  int64_t poisoned_row = 0;
};

class FaultyMoe : public model::MoeBlock {
 public:
  explicit FaultyMoe(const Faults& faults) : faults_(faults) {}

  void BeginLayer(int32_t layer) override {}
  absl::Status EndLayer(int32_t layer, model::PassProfile& profile) override {
    return layer == faults_.failing_layer ? absl::UnavailableError("no experts") : absl::OkStatus();
  }
  absl::Status Run(int32_t layer,
                   ops::ConstMatrix x,
                   const ops::Routing& routing,
                   ops::Matrix residual,
                   model::PassProfile& profile) override {
    if (layer == faults_.poisoned_layer) {
      residual.row<float>(faults_.poisoned_row)[3] = std::numeric_limits<float>::quiet_NaN();
    }
    return absl::OkStatus();
  }

 private:
  const Faults& faults_;
};

class FaultyEngineTest : public PrefixCacheTest {
 protected:
  std::unique_ptr<Engine> MakeFaulty(int64_t blocks) {
    return MakeEngine(host_,
                      {.thread_count = 1, .prefix_cache_bytes = blocks * block_bytes_},
                      [this](ops::Kernels&) { return std::make_unique<FaultyMoe>(faults_); });
  }

  Faults faults_;
};

TEST_P(FaultyEngineTest, APassThatFailedLeavesNothingBehind) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto plain = MakeFaulty(0);
  const auto cached = MakeFaulty(20);
  WorkStream stream(seed_);
  EventLog log;
  for (int pass = 0; pass < 40; ++pass) {
    const std::vector<Work> works = stream.Next();
    faults_.failing_layer = pass % 3 == 0 ? std::array{1, 2, 4}[pass / 3 % 3] : -1;
    const BatchResult expected = RunAll(*plain, works);
    const BatchResult actual = RunAll(*cached, works);
    if (faults_.failing_layer >= 0) {
      EXPECT_EQ(actual.works[0].status().code(), absl::StatusCode::kUnavailable);
      EXPECT_TRUE(actual.report.cache_events.stored.empty());
    } else {
      ASSERT_NO_FATAL_FAILURE(ExpectSameAnswers(expected, actual));
      ExpectHonestReport(log, works, actual);
    }
    log.Replay(actual.report.cache_events);
    EXPECT_EQ(log.block_count() * block_bytes_, actual.report.cache_held_bytes);
  }
}

TEST_P(FaultyEngineTest, KeepsNothingOfAWorkWhoseNumbersAreNotFinite) {
  const auto engine = MakeFaulty(100);
  // Sorted, the sick one comes first: its rows are 0 to 39.
  const Work sick{.request_id = "",
                  .sequences = {{.tokens = Tokens(40, 1), .rows = {LabelsAt(39)}}}};
  const Work sound{.request_id = "",
                   .sequences = {{.tokens = Tokens(40, 2), .rows = {LabelsAt(39)}}}};
  const auto answers = [&] {
    const BatchResult result = RunAll(*engine, {sound, sick});
    EXPECT_TRUE(result.works[0].ok());
    return std::pair(Numbers(*result.works[0]),
                     result.works[1].ok() ? Numbers(*result.works[1]) : std::vector<float>());
  };
  for (const int32_t layer : {1, 2}) {
    faults_ = {.poisoned_layer = layer, .poisoned_row = 20};
    EXPECT_TRUE(answers().second.empty());
  }
  faults_ = {};
  const BatchResult mended = RunAll(*engine, {sound, sick});
  EXPECT_EQ(mended.works[0]->usage.cached_tokens, 32);
  ASSERT_TRUE(mended.works[1].ok()) << mended.works[1].status();
  EXPECT_EQ(mended.works[1]->usage.cached_tokens, 0);
  ExpectSameAnswers(RunAll(*MakeFaulty(0), {sound, sick}), mended);
  ExpectSameAnswers(mended, RunAll(*engine, {sound, sick}));
}

std::string NameOfParam(const testing::TestParamInfo<DType>& info) {
  return std::string(NameOf(info.param));
}
INSTANTIATE_TEST_SUITE_P(DTypes,
                         PrefixCacheTest,
                         testing::Values(DType::kBf16, DType::kF32),
                         NameOfParam);
INSTANTIATE_TEST_SUITE_P(DTypes,
                         FaultyEngineTest,
                         testing::Values(DType::kBf16, DType::kF32),
                         NameOfParam);

}  // namespace
}  // namespace zp::engine
