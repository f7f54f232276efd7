#include "spec/saturation.h"

#include "spec/flops.h"

namespace zp::spec {

double LayerFlopsPerToken(const ModelSpec& spec, double context_tokens) {
  int32_t moe_layer = 0;
  while (moe_layer + 1 < spec.layer_count && !spec.layer_is_moe[moe_layer]) {
    ++moe_layer;
  }
  return QueryOutputFlops(spec) + KeyValueFlops(spec) + FfnFlops(spec, moe_layer) +
         AttentionFlops(spec, 1, 0) * context_tokens;
}

double SaturationTokens(double gather_seconds,
                        double flops_per_s,
                        double layer_flops_per_token,
                        double margin) {
  return margin * gather_seconds * flops_per_s / layer_flops_per_token;
}

}  // namespace zp::spec
