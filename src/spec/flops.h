// True FLOPs and parameter counts: the one set of equations that routing, scheduling and every
// benchmark use.
//
// A multiply-add counts as 2. Formulas and symbols: docs/physics.md (section "True FLOPs").
// Thread safety: pure functions.
#pragma once

#include <cstdint>

#include "spec/model_spec.h"

namespace zp::spec {

// Linear work of one token in one layer.
double QueryOutputFlops(const ModelSpec& spec);         // q and output projections: 4*h*n_q*d
double KeyValueFlops(const ModelSpec& spec);            // k and v projections: 4*h*n_kv*d
double FfnFlops(const ModelSpec& spec, int32_t layer);  // router and k experts, or the dense FFN

// Attention core of one layer: `query_count` consecutive tokens after `context_count` earlier ones,
// causal: 4*n_q*d*(s*p + s(s+1)/2).
double AttentionFlops(const ModelSpec& spec, int64_t query_count, int64_t context_count);

// One row of logits over `column_count` tokens: 2*h*columns.
double LogitFlops(const ModelSpec& spec, int64_t column_count);

// What a forward pass over a batch really computes. The last layer runs only K and V for the rows
// that nobody asked for.
struct PassShape {
  int64_t token_count = 0;           // tokens computed in every layer (each shared token once)
  int64_t asked_token_count = 0;     // tokens whose final hidden state is needed
  double attention_flops = 0;        // of one layer over all tokens, see AttentionFlops
  double asked_attention_flops = 0;  // of the last layer, over the asked tokens only
  int64_t full_vocabulary_rows = 0;  // rows of logits over the whole vocabulary
  int64_t label_columns = 0;         // single logits computed for label-only rows
};
double PassFlops(const ModelSpec& spec, const PassShape& shape);

// Parameters.
int64_t ExpertParameters(const ModelSpec& spec);                     // one expert: 3*h*I
int64_t LayerDenseParameters(const ModelSpec& spec, int32_t layer);  // all but the routed experts
int64_t TotalParameters(const ModelSpec& spec);
int64_t ActiveParameters(
    const ModelSpec& spec);  // touched by one token (embedding row not counted)

// Bytes of K and V of one token, all layers.
int64_t KvBytesPerToken(const ModelSpec& spec, DType dtype);

}  // namespace zp::spec
