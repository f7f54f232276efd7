// The goldens themselves: each is whole, and its checkpoint opens.
#include "golden_case.h"

#include "checkpoint/checkpoint.h"
#include "gtest/gtest.h"

namespace zp::tests {
namespace {

class GoldenCaseTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenCaseTest, IsWholeAndItsCheckpointOpens) {
  const GoldenCase golden = LoadGoldenCase(GetParam());
  const auto checkpoint = checkpoint::Checkpoint::Open(golden.directory);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const spec::ModelSpec& spec = (*checkpoint)->spec();
  ASSERT_EQ(golden.sequences.size(), 4);
  for (const GoldenSequence& sequence : golden.sequences) {
    const size_t token_count = sequence.tokens.size();
    ASSERT_GE(token_count, 1);
    EXPECT_EQ(sequence.logits.size(), token_count * spec.vocab_count);
    EXPECT_EQ(sequence.bf16_logits.size(), token_count * spec.vocab_count);
    EXPECT_EQ(sequence.hidden.size(), token_count * spec.model_dim);
    for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
      ASSERT_EQ(sequence.routing_by_layer.contains(layer), spec.layer_is_moe[layer]) << layer;
      if (spec.layer_is_moe[layer]) {
        const GoldenRouting& routing = sequence.routing_by_layer.at(layer);
        EXPECT_EQ(routing.chosen_count, spec.experts_per_token);
        EXPECT_EQ(routing.experts.size(), token_count * spec.experts_per_token);
        EXPECT_EQ(routing.margins.size(), token_count);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllCases,
                         GoldenCaseTest,
                         testing::ValuesIn(std::vector<std::string>{"all_experts_sharded",
                                                                    "dense_layers",
                                                                    "fused_experts",
                                                                    "sixty_experts",
                                                                    "sparse_step_f32",
                                                                    "tied",
                                                                    "top_one_f16"}),
                         [](const auto& info) { return info.param; });

TEST(GoldenCases, AreTheOnesTestedHere) { EXPECT_EQ(GoldenCaseNames().size(), 7); }

}  // namespace
}  // namespace zp::tests
