// The Qwen3-MoE family (Qwen3-30B-A3B, Qwen3-235B-A22B): its config.json and its tensor names.
#pragma once

#include "checkpoint/model_family.h"

namespace zp::checkpoint {

extern const ModelFamily kQwen3Moe;

}  // namespace zp::checkpoint
