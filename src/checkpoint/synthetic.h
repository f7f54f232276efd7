// Random checkpoints of a given shape, for benchmarks and tests: in memory, or as a Hugging Face
// directory on disk. Both hold the same numbers.
//
// A tensor's bytes depend only on the spec's dtype and shape, the seed and the tensor's place in
// the model: not on threads, order or machine. Weights are scaled so that activations stay near 1
// through any number of layers: norms near 1, linear weights with standard deviation
// 1/sqrt(inputs), embedding rows of standard deviation 1. With `fp8_blocks` the matrices of the
// layers, but routers, are 8-bit numbers with scales (fp8.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

// Tensors are generated when first asked for; Tensor() may be called from many threads. Release
// frees the memory, and a later Tensor() generates the same numbers again: a view must not be read
// after its Release, from any thread. directory() is `directory`: empty, or the place of the files
// that WriteSyntheticFiles wrote, for who wants to copy them.
std::unique_ptr<Checkpoint> CreateSynthetic(const spec::ModelSpec& spec,
                                            uint64_t seed,
                                            std::string directory = "",
                                            std::optional<spec::Fp8Blocks> fp8_blocks = {});

// All of a synthetic checkpoint but its weights: config.json and a byte-level tokenizer. Errors as
// WriteSynthetic's.
absl::Status WriteSyntheticFiles(const spec::ModelSpec& spec,
                                 const std::string& directory,
                                 std::optional<spec::Fp8Blocks> fp8_blocks = {});

// Called with the bytes written so far and in all, after every megabyte or tensor.
using WriteProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

constexpr int64_t kDefaultShardBytes = 4'000'000'000;

// Those of published models.
constexpr spec::Fp8Blocks kPublishedFp8Blocks = {128, 128};

// Writes config.json, safetensors shards with their index, and a byte-level tokenizer into
// `directory`, which is created. A shard has at most `max_shard_bytes` of weights, or one tensor.
// Errors: AlreadyExists if it holds a model, ResourceExhausted if the disk is too small,
// InvalidArgument for a vocabulary below 256 tokens (the tokenizer needs one for each byte),
// Unimplemented for an unknown family.
absl::Status WriteSynthetic(const spec::ModelSpec& spec,
                            uint64_t seed,
                            const std::string& directory,
                            const WriteProgress& progress,
                            int64_t max_shard_bytes = kDefaultShardBytes,
                            std::optional<spec::Fp8Blocks> fp8_blocks = {});

}  // namespace zp::checkpoint
