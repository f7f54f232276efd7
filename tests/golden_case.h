// Reads the goldens of tests/data/goldens: checkpoints with what Hugging Face transformers computed
// with them. tools/make_model_goldens.py makes them and says what each number is.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "checkpoint/safetensors.h"
#include "fmt/format.h"
#include "spec/model_spec.h"

namespace zp::tests {

struct GoldenRouting {
  int64_t chosen_count = 0;
  std::vector<int32_t> experts;  // [tokens, chosen_count], most probable first
  std::vector<float> margins;    // [tokens] last chosen probability minus best not chosen
};

struct GoldenSequence {
  std::vector<spec::TokenId> tokens;
  std::vector<float> logits;       // [tokens, vocab], computed in float32
  std::vector<float> hidden;       // [tokens, h], after the final norm, computed in float32
  std::vector<float> bf16_logits;  // [tokens, vocab], computed in bfloat16
  std::map<int32_t, GoldenRouting> routing_by_layer;
};

struct GoldenCase {
  std::string name;
  std::string directory;  // the checkpoint
  std::vector<GoldenSequence> sequences;
};

inline std::string GoldenDirectory() {
  const char* source = std::getenv("ZP_SOURCE_DIR");
  ZP_CHECK(source != nullptr) << "ZP_SOURCE_DIR is not set: run this test through ctest";
  return (std::filesystem::path(source) / "tests" / "data" / "goldens").string();
}

inline std::vector<std::string> GoldenCaseNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(GoldenDirectory())) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The numbers of a tensor that must be there (a broken golden is a bug of ours).
inline std::vector<float> GoldenFloats(const checkpoint::SafetensorsFile& file,
                                       const std::string& name) {
  const checkpoint::TensorView* view = file.Find(name);
  ZP_CHECK(view != nullptr) << name << " is not in " << file.path();
  std::vector<float> floats(view->bytes.size() / spec::SizeOf(view->dtype));
  if (view->dtype == spec::DType::kF32) {
    std::memcpy(floats.data(), view->bytes.data(), view->bytes.size());
    return floats;
  }
  ZP_CHECK(view->dtype == spec::DType::kBf16) << name;
  for (size_t i = 0; i < floats.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, view->bytes.data() + i * sizeof(bits), sizeof(bits));
    floats[i] = std::bit_cast<float>(uint32_t{bits} << 16);
  }
  return floats;
}

inline std::vector<int32_t> GoldenIntegers(const checkpoint::SafetensorsFile& file,
                                           const std::string& name) {
  const std::vector<float> floats = GoldenFloats(file, name);
  return {floats.begin(), floats.end()};
}

inline GoldenSequence LoadGoldenSequence(const checkpoint::SafetensorsFile& file, int index) {
  GoldenSequence sequence;
  sequence.tokens = GoldenIntegers(file, fmt::format("tokens.{}", index));
  sequence.logits = GoldenFloats(file, fmt::format("logits.{}", index));
  sequence.hidden = GoldenFloats(file, fmt::format("hidden.{}", index));
  sequence.bf16_logits = GoldenFloats(file, fmt::format("bf16_logits.{}", index));
  const std::string prefix = fmt::format("experts.{}.", index);
  for (const auto& [name, view] : file.tensors()) {
    if (name.starts_with(prefix)) {
      const std::string layer = name.substr(prefix.size());
      GoldenRouting& routing = sequence.routing_by_layer[std::stoi(layer)];
      routing.chosen_count = view.shape[1];
      routing.experts = GoldenIntegers(file, name);
      routing.margins = GoldenFloats(file, fmt::format("margin.{}.{}", index, layer));
    }
  }
  return sequence;
}

inline GoldenCase LoadGoldenCase(const std::string& name) {
  GoldenCase result;
  result.name = name;
  result.directory = (std::filesystem::path(GoldenDirectory()) / name).string();
  const auto file = checkpoint::SafetensorsFile::Open(result.directory + "/expected.safetensors");
  ZP_CHECK(file.ok()) << base::MessageOf(file.status());
  for (int index = 0; (*file)->Find(fmt::format("tokens.{}", index)) != nullptr; ++index) {
    result.sequences.push_back(LoadGoldenSequence(**file, index));
  }
  return result;
}

}  // namespace zp::tests
