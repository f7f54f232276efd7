// The random numbers of each tensor of a synthetic model: shared by the checkpoint in memory and
// the writer of files.
//
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "checkpoint/random_tensor.h"
#include "checkpoint/tensor_table.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

// "<role>/<layer>/<expert>" as numbers: what the random numbers depend on, whatever the family.
std::string SyntheticName(const TensorKey& key);

RandomTensor SyntheticNumbers(const spec::ModelSpec& spec, uint64_t seed, const TensorKey& key);

// Bytes of the tensor in the spec's weight_dtype.
size_t TensorBytes(const spec::ModelSpec& spec, TensorRole role);

}  // namespace zp::checkpoint
