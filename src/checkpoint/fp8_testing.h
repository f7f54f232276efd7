// A small checkpoint of 8-bit weights on disk, and the judge of what they mean.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/bfloat16.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/synthetic.h"
#include "checkpoint/tensor_table.h"
#include "checkpoint/testing.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::checkpoint {

constexpr int64_t kTestBlockRows = 8;
constexpr int64_t kTestBlockCols = 6;

// The formula of the format, number by number.
inline float JudgeFp8(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  const double sign = (bits & 128) != 0 ? -1.0 : 1.0;
  if (exponent == 15 && mantissa == 7) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  const double value = exponent == 0 ? std::ldexp(mantissa / 8.0, -6)
                                     : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
  return static_cast<float>(sign * value);
}

// TinySpec with all matrices of the layers but the routers in 8 bits: random numbers without NaN,
// in blocks of 8 rows and 6 columns, which divide none of the shapes. The scales of attention are
// bf16, those of the experts f32.
class Fp8Model {
 public:
  explicit Fp8Model(std::string directory) : directory_(std::move(directory)) {
    const spec::ModelSpec spec = TinySpec();
    ZP_CHECK(WriteSynthetic(spec, 1, directory_, [](int64_t, int64_t) {}).ok());
    const auto plain = Checkpoint::Open(directory_);
    ZP_CHECK(plain.ok()) << plain.status();
    for (const auto& [role, layer, expert] : TensorKeys(spec)) {
      const std::string name = (*plain)->TensorName(role, layer, expert);
      const TensorView& view = (*plain)->Tensor(role, layer, expert);
      if (layer >= 0 && view.shape.size() == 2 && role != TensorRole::kRouter) {
        AddFp8(name, view.shape, /*wide_scales=*/expert >= 0);
      } else {
        Add(name, "BF16", view.shape, {view.bytes.begin(), view.bytes.end()});
      }
    }
    std::filesystem::remove(directory_ + "/model.safetensors.index.json");
    std::filesystem::remove(directory_ + "/model-00001-of-00001.safetensors");
    EditText(directory_ + "/config.json",
             "{",
             R"({"quantization_config":{"quant_method":"fp8","fmt":"e4m3",)"
             R"("activation_scheme":"dynamic","weight_block_size":[8,6]},)");
    Write();
  }

  // Removes or changes what the file holds; Write puts it on the disk.
  void Remove(const std::string& name) { tensors_.erase(name); }
  void Add(const std::string& name,
           const std::string& dtype,
           const std::vector<int64_t>& shape,
           std::vector<std::byte> bytes) {
    tensors_[name] = {dtype, shape, std::move(bytes)};
  }

  void Write() const {
    std::string header = "{";
    std::string data;
    for (const size_t width : {4, 2, 1}) {
      for (const auto& [name, tensor] : tensors_) {
        if (WidthOf(tensor.dtype) == width) {
          header += fmt::format(R"({}"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                                header.size() == 1 ? "" : ",",
                                name,
                                tensor.dtype,
                                fmt::join(tensor.shape, ","),
                                data.size(),
                                data.size() + tensor.bytes.size());
          data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
        }
      }
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t header_bytes = header.size();
    WriteText(directory_ + "/model.safetensors",
              std::string(reinterpret_cast<const char*>(&header_bytes), 8) + header + data);
  }

  // The weight that a tensor of 8-bit numbers and its scales stand for.
  std::vector<float> Judge(const std::string& name) const {
    const Tensor& numbers = tensors_.at(name);
    const Tensor& scales = tensors_.at(name + "_scale_inv");
    std::vector<float> values;
    for (int64_t row = 0; row < numbers.shape[0]; ++row) {
      for (int64_t col = 0; col < numbers.shape[1]; ++col) {
        const int64_t block = row / kTestBlockRows * scales.shape[1] + col / kTestBlockCols;
        float scale = 0;
        if (scales.dtype == "F32") {
          std::memcpy(&scale, scales.bytes.data() + block * 4, 4);
        } else {
          base::BFloat16 narrow;
          std::memcpy(&narrow, scales.bytes.data() + block * 2, 2);
          scale = static_cast<float>(narrow);
        }
        const auto bits = static_cast<uint8_t>(numbers.bytes[row * numbers.shape[1] + col]);
        values.push_back(JudgeFp8(bits) * scale);
      }
    }
    return values;
  }

  bool IsFp8(const std::string& name) const { return tensors_.at(name).dtype == "F8_E4M3"; }

 private:
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };

  static size_t WidthOf(const std::string& dtype) {
    return dtype == "F32" ? 4 : dtype == "F8_E4M3" ? 1 : 2;
  }

  void AddFp8(const std::string& name, const std::vector<int64_t>& shape, bool wide_scales) {
    std::vector<std::byte> numbers(shape[0] * shape[1]);
    for (std::byte& number : numbers) {
      const uint32_t drawn = random_() % 254;  // 127 and 255 are NaN
      number = static_cast<std::byte>(drawn < 127 ? drawn : drawn + 1);
    }
    Add(name, "F8_E4M3", shape, std::move(numbers));
    const std::vector<int64_t> blocks = {(shape[0] + kTestBlockRows - 1) / kTestBlockRows,
                                         (shape[1] + kTestBlockCols - 1) / kTestBlockCols};
    std::vector<std::byte> scales;
    for (int64_t block = 0; block < blocks[0] * blocks[1]; ++block) {
      const float scale = 1e-4f * static_cast<float>(1 + random_() % 1000);
      const base::BFloat16 narrow(scale);
      const auto* bytes = wide_scales ? reinterpret_cast<const std::byte*>(&scale)
                                      : reinterpret_cast<const std::byte*>(&narrow);
      scales.insert(scales.end(), bytes, bytes + (wide_scales ? 4 : 2));
    }
    Add(name + "_scale_inv", wide_scales ? "F32" : "BF16", blocks, std::move(scales));
  }

  const std::string directory_;
  std::mt19937 random_{5};
  std::map<std::string, Tensor> tensors_;
};

}  // namespace zp::checkpoint
