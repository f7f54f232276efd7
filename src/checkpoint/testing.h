// What the tests of this room share: a folder that vanishes, and files written in one line.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "spec/model_spec.h"

namespace zp::checkpoint {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "zp-checkpoint-XXXXXX").string();
    ZP_CHECK(mkdtemp(name.data()) != nullptr) << name;
    path_ = std::move(name);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string File(std::string_view name) const {
    return (std::filesystem::path(path_) / name).string();
  }

 private:
  std::string path_;
};

inline void WriteText(const std::string& path, std::string_view text) {
  std::ofstream stream(path, std::ios::binary);
  stream << text;
  ZP_CHECK(stream.flush().good()) << path;
}

inline std::string ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  ZP_CHECK(stream.is_open()) << path;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// Replaces `from`, which must be there, in a file.
inline void EditText(const std::string& path, std::string_view from, std::string_view to) {
  std::string text = ReadText(path);
  const size_t place = text.find(from);
  ZP_CHECK(place != std::string::npos) << from << " is not in " << path;
  WriteText(path, text.replace(place, from.size(), to));
}

// Odd sizes everywhere; layer 1 has no experts.
inline spec::ModelSpec TinySpec() {
  spec::ModelSpec spec;
  spec.family = "qwen3_moe";
  spec.layer_count = 3;
  spec.model_dim = 20;
  spec.vocab_count = 270;
  spec.max_position_count = 512;
  spec.query_head_count = 6;
  spec.kv_head_count = 2;
  spec.head_dim = 8;
  spec.has_qk_norm = true;
  spec.rope_theta = 1e6;
  spec.expert_count = 5;
  spec.experts_per_token = 2;
  spec.expert_dim = 12;
  spec.normalize_top_k = true;
  spec.dense_ffn_dim = 28;
  spec.layer_is_moe = {true, false, true};
  spec.rms_epsilon = 1e-6f;
  spec.weight_dtype = spec::DType::kBf16;
  return spec;
}

}  // namespace zp::checkpoint
