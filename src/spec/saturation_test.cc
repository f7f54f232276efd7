#include "spec/saturation.h"

#include "gtest/gtest.h"
#include "spec/flops.h"
#include "spec/model_shapes.h"

namespace zp::spec {
namespace {

// docs/physics.md, short context: T* = margin * (F * b / B) * (E / 2k) / (1 + rho), here with
// u = 1, b = 2 bytes and nothing resident.
TEST(Saturation, AgreesWithTheClosedFormForQwen3) {
  const ModelSpec spec = *FindModelShape("qwen3-30b-a3b");
  const double flops_per_s = 990e12;
  const double bytes_per_s = 360e9;
  const double bank_bytes = 2.0 * static_cast<double>(ExpertParameters(spec)) * spec.expert_count;
  const double layer_flops = LayerFlopsPerToken(spec, 0);
  const double expert_flops =
      2.0 * static_cast<double>(ExpertParameters(spec)) * spec.experts_per_token;
  const double rho = (layer_flops - expert_flops) / expert_flops;
  EXPECT_NEAR(rho, 0.5, 0.02);
  const double closed_form = 1.2 * (flops_per_s * 2 / bytes_per_s) *
                             (spec.expert_count / (2.0 * spec.experts_per_token)) / (1 + rho);
  EXPECT_NEAR(SaturationTokens(bank_bytes / bytes_per_s, flops_per_s, layer_flops, 1.2),
              closed_form,
              1e-9 * closed_form);
}

TEST(Saturation, ContextMakesATokenDearerAndTheThresholdLower) {
  const ModelSpec spec = *FindModelShape("qwen3-30b-a3b");
  EXPECT_EQ(LayerFlopsPerToken(spec, 1000) - LayerFlopsPerToken(spec, 0), 16384.0 * 1000);
  EXPECT_LT(SaturationTokens(1, 1e12, LayerFlopsPerToken(spec, 4096)),
            SaturationTokens(1, 1e12, LayerFlopsPerToken(spec, 0)));
}

}  // namespace
}  // namespace zp::spec
