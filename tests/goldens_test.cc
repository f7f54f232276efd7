// The engine against Hugging Face transformers, on the small random checkpoints of
// tests/data/goldens.
//
// Measures, the same for every case:
//   experts  the same in every layer, in f32 and in bf16, wherever the router's margin exceeds the
//            rounding. A choice closer than that may fall either way, here as in transformers, and
//            then moves the logits by far more than rounding does: such positions are left out
//            below
//   f32      largest difference of a row over its largest number: at most 1e-4, hidden states and
//            logits; the same most likely token at 99.5 % of all positions
//   bf16     where the experts are the same: root mean square difference from transformers' f32
//   logits
//            at most that of transformers' own bf16 run, and the same most likely token at 99.5 %
//            of the positions that are decided clearly (the gap of the best two over four times
//            that noise)
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "engine/token_trie.h"
#include "golden_case.h"
#include "gtest/gtest.h"
#include "model/forward_pass.h"
#include "model/gathered_moe.h"
#include "model/model_weights.h"
#include "ops/cpu/cpu_kernels.h"
#include "recording_kernels.h"

namespace zp::tests {
namespace {

using spec::DType;

constexpr float kF32Tolerance = 1e-4f;
constexpr double kArgMaxShare = 0.995;
// One unit in the last place of a router probability near 1: of bf16, and a bound for f32.
constexpr float kRouterRounding[] = {/*bf16*/ 0x1p-8f, /*f32*/ 1e-5f};
// Choices closer than the rounding are few; more of them would be a fault.
constexpr double kCloseChoiceShare = 0.1;

std::span<const float> RowOf(const std::vector<float>& matrix, size_t row, size_t columns) {
  return std::span(matrix).subspan(row * columns, columns);
}

size_t ArgMax(std::span<const float> row) { return std::ranges::max_element(row) - row.begin(); }

// How far the best number lies above the second.
float GapOf(std::span<const float> row) {
  std::vector<float> sorted(row.begin(), row.end());
  std::ranges::nth_element(sorted, sorted.begin() + 1, std::greater<>());
  return sorted[0] - sorted[1];
}

double RootMeanSquareDifference(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  }
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// Largest difference of each row, over the row's largest number.
float WorstRelativeRow(const std::vector<float>& actual,
                       const std::vector<float>& expected,
                       size_t columns) {
  float worst = 0;
  for (size_t row = 0; row * columns < expected.size(); ++row) {
    float difference = 0, scale = 0;
    for (size_t i = row * columns; i < (row + 1) * columns; ++i) {
      difference = std::max(difference, std::abs(actual[i] - expected[i]));
      scale = std::max(scale, std::abs(expected[i]));
    }
    worst = std::max(worst, difference / scale);
  }
  return worst;
}

std::unique_ptr<checkpoint::Checkpoint> OpenCheckpoint(const std::string& directory) {
  auto checkpoint = checkpoint::Checkpoint::Open(directory);
  ZP_CHECK(checkpoint.ok()) << base::MessageOf(checkpoint.status());
  return *std::move(checkpoint);
}

// All logits of all positions of every sequence, in one batch, as clients get them.
std::vector<std::vector<float>> EngineLogits(const GoldenCase& golden, DType dtype) {
  const auto checkpoint = OpenCheckpoint(golden.directory);
  auto host_model = engine::HostModel::Load(*checkpoint, {.activation_dtype = dtype});
  ZP_CHECK(host_model.ok()) << base::MessageOf(host_model.status());
  auto engine = engine::Engine::Create(*std::move(host_model), {.thread_count = 2});
  ZP_CHECK(engine.ok()) << base::MessageOf(engine.status());
  std::vector<spec::TokenId> all_tokens((*engine)->spec().vocab_count);
  std::iota(all_tokens.begin(), all_tokens.end(), 0);
  protocol::Work work;
  for (const GoldenSequence& sequence : golden.sequences) {
    protocol::Sequence& asked = work.sequences.emplace_back();
    asked.tokens = sequence.tokens;
    for (int32_t position = 0; std::cmp_less(position, sequence.tokens.size()); ++position) {
      asked.rows.push_back({.position = position, .columns = all_tokens, .full_vocabulary = true});
    }
  }
  const protocol::Work* const batch[] = {&work};
  const engine::BatchResult result = (*engine)->Run(batch);
  ZP_CHECK(result.works[0].ok()) << base::MessageOf(result.works[0].status());
  std::vector<std::vector<float>> logits;
  for (const auto& answer : result.works[0]->sequences) {
    std::vector<float>& matrix = logits.emplace_back();
    for (const protocol::Row& row : answer.rows) {
      matrix.insert(matrix.end(), row.column_logits.begin(), row.column_logits.end());
    }
  }
  return logits;
}

// One sequence through the forward pass alone: what the engine does not show.
struct RecordedPass {
  std::vector<float> hidden;                        // [tokens, h], f32 passes only
  std::map<int32_t, std::vector<int32_t>> experts;  // by layer: [tokens, experts_per_token]
};

std::vector<RecordedPass> RecordPasses(const GoldenCase& golden, DType dtype) {
  const auto checkpoint = OpenCheckpoint(golden.directory);
  base::ThreadPool pool(2);
  RecordingKernels kernels(*ops::cpu::CreateKernels(dtype, pool));
  const auto host_model = engine::HostModel::Load(*checkpoint, {.activation_dtype = dtype});
  ZP_CHECK(host_model.ok()) << base::MessageOf(host_model.status());
  const auto experts = (*host_model)->OpenExperts(/*rank=*/0, /*trace=*/nullptr);
  ZP_CHECK(experts.ok()) << base::MessageOf(experts.status());
  model::GatheredMoe moe(
      (*host_model)->spec().layer_is_moe, (*host_model)->expert_layout(), **experts, kernels);
  model::ForwardPass pass((*host_model)->weights(), moe, kernels, 1024);
  std::vector<RecordedPass> passes;
  for (const GoldenSequence& sequence : golden.sequences) {
    const protocol::Sequence tokens{.tokens = sequence.tokens, .rows = {}};
    const protocol::Sequence* const sequences[] = {&tokens};
    model::TokenBatch batch = engine::BuildTokenTrie(sequences).batch;
    batch.asked_rows.resize(sequence.tokens.size());
    std::iota(batch.asked_rows.begin(), batch.asked_rows.end(), 0);
    kernels.routings.clear();
    model::PassProfile profile;
    profile.Clear((*host_model)->spec().layer_count, /*source_count=*/0);
    const ops::ConstMatrix hidden = *pass.Run(batch, profile);
    RecordedPass& recorded = passes.emplace_back();
    if (dtype == DType::kF32) {
      recorded.hidden.assign(hidden.row<float>(0), hidden.row<float>(hidden.rows));
    }
    ZP_CHECK(kernels.routings.size() == sequence.routing_by_layer.size())
        << kernels.routings.size();
    auto routing_of_layer = kernels.routings.begin();
    for (const auto& [layer, routing] : sequence.routing_by_layer) {
      recorded.experts[layer] = *routing_of_layer++;
    }
  }
  return passes;
}

bool SameExperts(const std::vector<int32_t>& experts, const GoldenRouting& routing, size_t token) {
  const auto begin = static_cast<int64_t>(token) * routing.chosen_count;
  const auto end = begin + routing.chosen_count;
  return std::is_permutation(
      experts.begin() + begin, experts.begin() + end, routing.experts.begin() + begin);
}

// Whether a token went to transformers' experts in every layer.
bool SameExpertsInAllLayers(const RecordedPass& pass,
                            const GoldenSequence& sequence,
                            size_t token) {
  return std::ranges::all_of(sequence.routing_by_layer, [&](const auto& layer_routing) {
    return SameExperts(pass.experts.at(layer_routing.first), layer_routing.second, token);
  });
}

class GoldensTest : public testing::TestWithParam<std::string> {
 protected:
  GoldensTest() : golden_(LoadGoldenCase(GetParam())) {}
  size_t vocab_count() const {
    return golden_.sequences[0].logits.size() / golden_.sequences[0].tokens.size();
  }

  const GoldenCase golden_;
};

TEST_P(GoldensTest, F32LogitsAreThoseOfTransformers) {
  const auto logits = EngineLogits(golden_, DType::kF32);
  int64_t agreeing = 0, positions = 0;
  for (size_t s = 0; s < golden_.sequences.size(); ++s) {
    const std::vector<float>& expected = golden_.sequences[s].logits;
    ASSERT_EQ(logits[s].size(), expected.size());
    EXPECT_LE(WorstRelativeRow(logits[s], expected, vocab_count()), kF32Tolerance);
    for (size_t row = 0; row < golden_.sequences[s].tokens.size(); ++row, ++positions) {
      agreeing += ArgMax(RowOf(logits[s], row, vocab_count())) ==
                  ArgMax(RowOf(expected, row, vocab_count()));
    }
  }
  EXPECT_GE(static_cast<double>(agreeing), kArgMaxShare * static_cast<double>(positions));
}

TEST_P(GoldensTest, Bf16LogitsAreNoFurtherOffThanTransformersOwn) {
  const auto logits = EngineLogits(golden_, DType::kBf16);
  const auto passes = RecordPasses(golden_, DType::kBf16);
  std::vector<float> ours, theirs, exact;
  size_t positions = 0;
  int64_t ours_as_exact = 0, theirs_as_exact = 0;  // most likely tokens over all positions
  for (size_t s = 0; s < golden_.sequences.size(); ++s) {
    const GoldenSequence& sequence = golden_.sequences[s];
    positions += sequence.tokens.size();
    for (size_t token = 0; token < sequence.tokens.size(); ++token) {
      const size_t best = ArgMax(RowOf(sequence.logits, token, vocab_count()));
      ours_as_exact += ArgMax(RowOf(logits[s], token, vocab_count())) == best;
      theirs_as_exact += ArgMax(RowOf(sequence.bf16_logits, token, vocab_count())) == best;
      if (SameExpertsInAllLayers(passes[s], sequence, token)) {
        std::ranges::copy(RowOf(logits[s], token, vocab_count()), std::back_inserter(ours));
        std::ranges::copy(RowOf(sequence.bf16_logits, token, vocab_count()),
                          std::back_inserter(theirs));
        std::ranges::copy(RowOf(sequence.logits, token, vocab_count()), std::back_inserter(exact));
      }
    }
  }
  const size_t compared = exact.size() / vocab_count();
  EXPECT_GE(static_cast<double>(compared),
            (1 - kCloseChoiceShare) * static_cast<double>(positions));
  const double noise = RootMeanSquareDifference(theirs, exact);
  EXPECT_LE(RootMeanSquareDifference(ours, exact), noise);

  int64_t clear = 0, agreeing = 0;
  for (size_t row = 0; row < compared; ++row) {
    const auto exact_row = RowOf(exact, row, vocab_count());
    if (GapOf(exact_row) > 4 * noise) {
      ++clear;
      agreeing += ArgMax(RowOf(ours, row, vocab_count())) == ArgMax(exact_row);
    }
  }
  EXPECT_GE(static_cast<double>(agreeing), kArgMaxShare * static_cast<double>(clear));
  std::printf(
      "%s: bf16 rms %.5f, transformers' own %.5f, over %zu of %zu positions; the same most "
      "likely token at %ld of %ld clear ones, at %ld of all (transformers' own bf16: %ld)\n",
      golden_.name.c_str(),
      RootMeanSquareDifference(ours, exact),
      noise,
      compared,
      positions,
      agreeing,
      clear,
      ours_as_exact,
      theirs_as_exact);
}

TEST_P(GoldensTest, F32HiddenStatesAreThoseOfTransformers) {
  const auto passes = RecordPasses(golden_, DType::kF32);
  for (size_t s = 0; s < passes.size(); ++s) {
    const std::vector<float>& expected = golden_.sequences[s].hidden;
    ASSERT_EQ(passes[s].hidden.size(), expected.size());
    const size_t columns = expected.size() / golden_.sequences[s].tokens.size();
    EXPECT_LE(WorstRelativeRow(passes[s].hidden, expected, columns), kF32Tolerance);
  }
}

// A token that went another way in one layer comes to the next with other numbers: it counts up to
// its first difference, which must be a close choice.
TEST_P(GoldensTest, TokensGoToTheExpertsOfTransformers) {
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    const float rounding = kRouterRounding[dtype == DType::kF32];
    const auto passes = RecordPasses(golden_, dtype);
    int64_t same = 0, close = 0;
    for (size_t s = 0; s < passes.size(); ++s) {
      for (size_t token = 0; token < golden_.sequences[s].tokens.size(); ++token) {
        for (const auto& [layer, routing] : golden_.sequences[s].routing_by_layer) {
          if (!SameExperts(passes[s].experts.at(layer), routing, token)) {
            ++close;
            EXPECT_LE(routing.margins[token], rounding)
                << spec::NameOf(dtype) << " layer " << layer << " token " << token;
            break;
          }
          ++same;
        }
      }
    }
    std::printf("%s: %s experts the same in %ld choices, another way in %ld close ones\n",
                golden_.name.c_str(),
                std::string(spec::NameOf(dtype)).c_str(),
                same,
                close);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases,
                         GoldensTest,
                         testing::ValuesIn(GoldenCaseNames()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace zp::tests
