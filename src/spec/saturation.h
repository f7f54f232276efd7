// The saturation threshold T*: how much work a pass needs for its compute to cover the gather of
// the next layer's experts.
//
// Symbols and derivation: docs/physics.md (section "Saturation threshold").
// Thread safety: pure functions.
#pragma once

#include <cstdint>

#include "spec/model_spec.h"

namespace zp::spec {

// True FLOPs of one token in one MoE layer, `context_tokens` of context before it on average.
double LayerFlopsPerToken(const ModelSpec& spec, double context_tokens);

// Tokens per pass at which a layer's compute lasts as long as the gather of a bank:
// margin * gather_seconds * flops_per_s / layer_flops_per_token. `flops_per_s` is what the rank
// achieves (u * F), or its peak for the paper's form (u = 1).
double SaturationTokens(double gather_seconds,
                        double flops_per_s,
                        double layer_flops_per_token,
                        double margin = 1);

}  // namespace zp::spec
