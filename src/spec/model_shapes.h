// Published models by name: their shapes, for counting and for synthetic checkpoints.
//
// Thread safety: pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "spec/model_spec.h"

namespace zp::spec {

// "qwen3-30b-a3b" -> its shape. NotFound lists the names there are.
absl::StatusOr<ModelSpec> FindModelShape(std::string_view name);

std::vector<std::string> ModelShapeNames();

// The same model cut to its first `layer_count` layers. REQUIRES: 1 <= layer_count <=
// spec.layer_count.
ModelSpec WithLayerCount(ModelSpec spec, int32_t layer_count);

}  // namespace zp::spec
