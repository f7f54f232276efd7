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
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

// "<role>/<layer>/<expert>" as numbers: what the random numbers depend on, whatever the family.
std::string SyntheticName(const TensorKey& key);

RandomTensor SyntheticNumbers(const spec::ModelSpec& spec, uint64_t seed, const TensorKey& key);

// Bytes of the tensor in the spec's weight_dtype.
size_t TensorBytes(const spec::ModelSpec& spec, TensorRole role);

// Whether a checkpoint in 8 bits has this tensor in 8 bits: the matrices of the layers but routers.
bool IsFp8Role(const spec::ModelSpec& spec, TensorRole role);

// Such a tensor's 8-bit numbers and f32 scales. The numbers times the scales are distributed as
// SyntheticNumbers, but are other numbers.
RandomTensor SyntheticFp8Numbers(uint64_t seed, const TensorKey& key);
RandomTensor SyntheticFp8Scales(const spec::ModelSpec& spec, uint64_t seed, const TensorKey& key);

}  // namespace zp::checkpoint
