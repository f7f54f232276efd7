// The whole engine on synthetic models: the CPU path against the reference, and the same bits in
// any company.
#include "engine/engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/synthetic.h"
#include "engine/odd_spec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::engine {
namespace {

using protocol::Pooling;
using protocol::Row;
using protocol::Sequence;
using protocol::Work;
using spec::DType;
using spec::TokenId;

// The layers without experts stand first, in the middle and last.
spec::ModelSpec OddSpec(bool tied_embeddings) {
  return engine::OddSpec({false, true, false, true, true}, tied_embeddings);
}

std::unique_ptr<Engine> MakeEngine(const spec::ModelSpec& spec,
                                   const HostModelOptions& model_options,
                                   const EngineOptions& options) {
  auto host_model = HostModel::Load(*checkpoint::CreateSynthetic(spec, 7), model_options);
  EXPECT_TRUE(host_model.ok()) << host_model.status();
  auto engine = Engine::Create(*std::move(host_model), options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::vector<TokenId> RandomTokens(std::mt19937& random, int64_t count, int32_t vocab_count) {
  std::vector<TokenId> tokens(count);
  std::ranges::generate(tokens, [&] { return static_cast<TokenId>(random() % vocab_count); });
  return tokens;
}

// Works whose sequences share prefixes of every kind: none, inside a block, over several blocks,
// whole.
std::vector<Work> RandomWorks(std::mt19937& random, int32_t vocab_count, int count) {
  std::vector<Work> works;
  const std::vector<TokenId> stem = RandomTokens(random, 120, vocab_count);
  for (int i = 0; i < count; ++i) {
    Work work{.request_id = std::to_string(i), .sequences = {}};
    for (size_t s = 0; s < 1 + random() % 3; ++s) {
      Sequence sequence;
      sequence.tokens.assign(stem.begin(),
                             stem.begin() + static_cast<int64_t>(random() % stem.size()));
      for (const TokenId token :
           RandomTokens(random, 1 + static_cast<int64_t>(random() % 50), vocab_count)) {
        sequence.tokens.push_back(token);
      }
      const auto length = static_cast<int32_t>(sequence.tokens.size());
      sequence.rows.push_back(
          {.position = length / 2, .columns = {5, 3, 5}, .full_vocabulary = false, .top_count = 0});
      if (length / 2 < length - 1) {
        sequence.rows.push_back(
            {.position = length - 1, .columns = {7}, .full_vocabulary = true, .top_count = 4});
      }
      sequence.pooling =
          std::array{Pooling::kNone, Pooling::kLastToken, Pooling::kMean}[random() % 3];
      work.sequences.push_back(std::move(sequence));
    }
    works.push_back(std::move(work));
  }
  return works;
}

BatchResult RunAll(Engine& engine, const std::vector<Work>& works) {
  std::vector<const Work*> batch;
  for (const Work& work : works) {
    batch.push_back(&work);
  }
  return engine.Run(batch);
}

// Every number of an answer, in one list.
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

// The numbers that vary smoothly: without the ranking of near-equal tokens.
std::vector<float> SmoothNumbers(protocol::WorkResult result) {
  for (auto& sequence : result.sequences) {
    for (Row& row : sequence.rows) {
      row.top.clear();
    }
  }
  return Numbers(result);
}

class EngineTest : public testing::Test {
 protected:
  EngineTest() : seed_(std::random_device{}()), random_(seed_) {
    RecordProperty("seed", std::to_string(seed_));
  }

  const uint32_t seed_;
  std::mt19937 random_;
};

TEST_F(EngineTest, TheF32PathAgreesWithTheReference) {
  for (const bool tied_embeddings : {false, true}) {
    const spec::ModelSpec spec = OddSpec(tied_embeddings);
    const auto reference = MakeEngine(spec, {.backend = Backend::kReference}, {.thread_count = 1});
    const auto cpu = MakeEngine(spec, {.activation_dtype = DType::kF32}, {.thread_count = 2});
    const std::vector<Work> works = RandomWorks(random_, spec.vocab_count, 6);
    const BatchResult expected = RunAll(*reference, works);
    const BatchResult actual = RunAll(*cpu, works);
    for (size_t i = 0; i < works.size(); ++i) {
      ASSERT_TRUE(expected.works[i].ok()) << expected.works[i].status();
      ASSERT_TRUE(actual.works[i].ok()) << actual.works[i].status();
      const std::vector<float> expected_numbers = SmoothNumbers(*expected.works[i]);
      const std::vector<float> actual_numbers = SmoothNumbers(*actual.works[i]);
      ASSERT_EQ(expected_numbers.size(), actual_numbers.size());
      for (size_t n = 0; n < expected_numbers.size(); ++n) {
        EXPECT_NEAR(actual_numbers[n],
                    expected_numbers[n],
                    1e-4f * std::max(1.0f, std::abs(expected_numbers[n])))
            << "seed " << seed_;
      }
    }
  }
}

TEST_F(EngineTest, AnswersAreBitEqualInAnyCompany) {
  const spec::ModelSpec spec = OddSpec(false);
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    const auto engine = MakeEngine(spec, {.activation_dtype = dtype}, {.thread_count = 2});
    const auto one_thread = MakeEngine(spec, {.activation_dtype = dtype}, {.thread_count = 1});
    const auto small_chunks =
        MakeEngine(spec, {.activation_dtype = dtype}, {.thread_count = 2, .chunk_tokens = 37});
    std::vector<Work> works = RandomWorks(random_, spec.vocab_count, 8);
    std::vector<std::vector<float>> alone;
    for (const Work& work : works) {
      const BatchResult result = RunAll(*engine, {work});
      ASSERT_TRUE(result.works[0].ok()) << result.works[0].status();
      alone.push_back(Numbers(*result.works[0]));
    }
    std::vector<size_t> order(works.size());
    std::iota(order.begin(), order.end(), size_t{0});
    for (Engine* crowd_engine : {engine.get(), one_thread.get(), small_chunks.get()}) {
      std::ranges::shuffle(order, random_);
      std::vector<Work> shuffled;
      for (const size_t index : order) {
        shuffled.push_back(works[index]);
      }
      const BatchResult crowd = RunAll(*crowd_engine, shuffled);
      for (size_t place = 0; place < order.size(); ++place) {
        EXPECT_EQ(Numbers(*crowd.works[place]), alone[order[place]]) << "seed " << seed_;
      }
    }
  }
}

TEST_F(EngineTest, EachDistinctTokenIsComputedAndChargedOnce) {
  const spec::ModelSpec spec = OddSpec(false);
  const auto engine = MakeEngine(spec, {}, {.thread_count = 1});
  const std::vector<TokenId> prompt = RandomTokens(random_, 41, spec.vocab_count);
  Work work{.request_id = "labels", .sequences = {}};
  for (const TokenId label : {1, 2, 3}) {
    Sequence sequence{.tokens = prompt, .rows = {}};
    sequence.tokens.push_back(label);
    sequence.rows.push_back(
        {.position = 40, .columns = {label}, .full_vocabulary = true, .top_count = 0});
    work.sequences.push_back(std::move(sequence));
  }
  const BatchResult result = RunAll(*engine, {work, work});
  EXPECT_EQ(result.report.asked_tokens, 2 * 3 * 42);
  EXPECT_EQ(result.report.computed_tokens, 41 + 3);
  ASSERT_TRUE(result.works[0].ok() && result.works[1].ok());
  EXPECT_EQ(result.works[0]->usage.computed_tokens + result.works[1]->usage.computed_tokens,
            41 + 3);
  EXPECT_DOUBLE_EQ(result.works[0]->usage.flops + result.works[1]->usage.flops,
                   result.report.flops);
}

TEST_F(EngineTest, ABadWorkFailsAloneAndNamesItsFault) {
  const spec::ModelSpec spec = OddSpec(false);
  const auto engine = MakeEngine(spec, {}, {.thread_count = 1});
  const auto work_of = [](std::vector<TokenId> tokens, protocol::RowAsk ask) {
    return Work{.request_id = "",
                .sequences = {{.tokens = std::move(tokens), .rows = {std::move(ask)}}}};
  };
  const protocol::RowAsk last{
      .position = 1, .columns = {0}, .full_vocabulary = true, .top_count = 1};
  const struct {
    Work work;
    const char* message;
  } bad[] = {
      {work_of({}, last), "no tokens"},
      {work_of({1, 301}, last), "token 301 is not in the vocabulary"},
      {work_of({1, -1}, last), "token -1"},
      {work_of({1}, last), "position 1"},
      {work_of({1, 2}, {.position = 1, .columns = {999}, .full_vocabulary = false, .top_count = 0}),
       "token 999"},
      {work_of({1, 2}, {.position = 1, .columns = {}, .full_vocabulary = true, .top_count = 5000}),
       "limit is 1024"},
      {work_of(std::vector<TokenId>(4097, 1), last), "maximum is 4096"},
      {Work{}, "no sequences"},
  };
  for (const auto& [work, message] : bad) {
    const BatchResult result = RunAll(*engine, {work_of({1, 2}, last), work});
    EXPECT_TRUE(result.works[0].ok());
    ASSERT_EQ(result.works[1].status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(base::MessageOf(result.works[1].status()), testing::HasSubstr(message));
  }
}

}  // namespace
}  // namespace zp::engine
