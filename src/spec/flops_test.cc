#include "spec/flops.h"

#include "gtest/gtest.h"
#include "spec/model_shapes.h"

namespace zp::spec {
namespace {

ModelSpec Shape(const char* name) { return *FindModelShape(name); }

double LinearFlops(const ModelSpec& spec, int32_t layer) {
  return QueryOutputFlops(spec) + KeyValueFlops(spec) + FfnFlops(spec, layer);
}

TEST(Flops, LinearWorkOfALayerMatchesTheTableInPhysics) {
  EXPECT_NEAR(LinearFlops(Shape("qwen3-235b-a22b"), 0), 445.6e6, 0.05e6);
  EXPECT_NEAR(LinearFlops(Shape("qwen3-30b-a3b"), 0), 113.8e6, 0.05e6);
}

TEST(Flops, AttentionOfOneTokenCostsFourTimesTheQueryWidthPerPosition) {
  EXPECT_EQ(AttentionFlops(Shape("qwen3-235b-a22b"), 1, 0), 32768);
  EXPECT_EQ(AttentionFlops(Shape("qwen3-30b-a3b"), 1, 0), 16384);
  EXPECT_EQ(AttentionFlops(Shape("qwen3-30b-a3b"), 1, 99), 16384 * 100.0);
}

TEST(Flops, AttentionOfAPrefixAndItsSuffixAddUpToTheWhole) {
  const ModelSpec spec = Shape("qwen3-30b-a3b");
  EXPECT_EQ(AttentionFlops(spec, 100, 0) + AttentionFlops(spec, 28, 100),
            AttentionFlops(spec, 128, 0));
}

TEST(Flops, ParametersMatchThePublishedCounts) {
  const ModelSpec small = Shape("qwen3-30b-a3b");
  EXPECT_EQ(ExpertParameters(small), 4'718'592);
  EXPECT_NEAR(small.expert_count * ExpertParameters(small), 604e6, 0.5e6);
  EXPECT_NEAR(TotalParameters(small), 30.5e9, 0.05e9);
  // The published "3.3 B active" counts the whole embedding table; a token touches one row of it.
  const int64_t embedding = int64_t{small.vocab_count} * small.model_dim;
  EXPECT_NEAR(ActiveParameters(small) + embedding, 3.35e9, 0.05e9);

  const ModelSpec large = Shape("qwen3-235b-a22b");
  EXPECT_EQ(ExpertParameters(large), 18'874'368);
  EXPECT_NEAR(large.expert_count * ExpertParameters(large), 2.416e9, 0.001e9);
  EXPECT_NEAR(TotalParameters(large), 235.1e9, 0.05e9);
  EXPECT_NEAR(ActiveParameters(large), 22e9, 0.5e9);
}

TEST(Flops, TiedEmbeddingsAreOneMatrix) {
  ModelSpec spec = Shape("qwen3-30b-a3b");
  const int64_t untied = TotalParameters(spec);
  spec.tied_embeddings = true;
  EXPECT_EQ(untied - TotalParameters(spec), int64_t{spec.vocab_count} * spec.model_dim);
}

TEST(Flops, KvBytesMatchTheTableInPhysics) {
  EXPECT_EQ(KvBytesPerToken(Shape("qwen3-235b-a22b"), DType::kBf16), 192'512);
  EXPECT_EQ(KvBytesPerToken(Shape("qwen3-30b-a3b"), DType::kBf16), 98'304);
  EXPECT_EQ(KvBytesPerToken(WithLayerCount(Shape("qwen3-30b-a3b"), 1), DType::kBf16), 2048);
}

TEST(Flops, ADenseLayerCountsItsOwnFfn) {
  ModelSpec spec = WithLayerCount(Shape("qwen3-30b-a3b"), 2);
  spec.layer_is_moe[1] = false;
  EXPECT_EQ(FfnFlops(spec, 1), 6.0 * 2048 * 6144);
  EXPECT_EQ(LayerDenseParameters(spec, 1) - LayerDenseParameters(spec, 0),
            int64_t{3} * 2048 * 6144 - int64_t{2048} * 128);
}

TEST(Flops, APassThatAsksForEveryRowCostsEveryLayerInFull) {
  const ModelSpec spec = WithLayerCount(Shape("qwen3-30b-a3b"), 4);
  PassShape shape;
  shape.token_count = 256;
  shape.asked_token_count = 256;
  shape.attention_flops = AttentionFlops(spec, 256, 0);
  shape.asked_attention_flops = shape.attention_flops;
  shape.full_vocabulary_rows = 256;
  const double expected =
      4 * (256 * LinearFlops(spec, 0) + shape.attention_flops) + 256 * 2.0 * 2048 * 151936;
  EXPECT_NEAR(PassFlops(spec, shape), expected, expected * 1e-12);
}

TEST(Flops, RowsNobodyAskedForCostOnlyKeysAndValuesInTheLastLayer) {
  const ModelSpec spec = WithLayerCount(Shape("qwen3-30b-a3b"), 1);
  PassShape shape;
  shape.token_count = 100;
  shape.asked_token_count = 1;
  shape.attention_flops = AttentionFlops(spec, 100, 0);
  shape.asked_attention_flops = AttentionFlops(spec, 1, 99);
  shape.label_columns = 10;
  EXPECT_EQ(PassFlops(spec, shape),
            100 * KeyValueFlops(spec) + QueryOutputFlops(spec) + FfnFlops(spec, 0) +
                shape.asked_attention_flops + 2.0 * 2048 * 10);
}

TEST(ModelShapes, AnUnknownNameListsTheKnownOnes) {
  const absl::Status status = FindModelShape("qwen9").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(base::MessageOf(status),
            "there is no model shape 'qwen9'; the names are: qwen3-30b-a3b, qwen3-235b-a22b");
}

}  // namespace
}  // namespace zp::spec
