#include "checkpoint/fp8.h"

#include <cmath>

#include "base/float8.h"
#include "checkpoint/fp8_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::checkpoint {
namespace {

using testing::HasSubstr;

constexpr const char* kQuery = "model.layers.0.self_attn.q_proj.weight";
constexpr const char* kExpertUpName = "model.layers.2.mlp.experts.4.up_proj.weight";

TEST(Fp8, ReadsAllNumbersAsTheFormulaSays) {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = base::Fp8ToFloat(static_cast<uint8_t>(bits));
    const float expected = JudgeFp8(static_cast<uint8_t>(bits));
    EXPECT_TRUE(value == expected || (std::isnan(value) && std::isnan(expected))) << bits;
    EXPECT_EQ(std::signbit(value), std::signbit(expected)) << bits;
  }
  EXPECT_EQ(base::Fp8ToFloat(0x7e), 448.0f);
  EXPECT_EQ(base::Fp8ToFloat(0x01), 0x1p-9f);
}

TEST(Fp8, RoundsToTheNearest) {
  for (int bits = 0; bits < 255; ++bits) {
    if (bits == base::kFp8Nan) {
      continue;
    }
    const auto number = static_cast<uint8_t>(bits);
    const float value = JudgeFp8(number);
    EXPECT_EQ(base::FloatToFp8(value), number);
    if ((bits & 0x7f) < 0x7e) {  // a hair to either side of the middle, and the middle itself
      const float middle = (value + JudgeFp8(number + 1)) / 2;
      EXPECT_EQ(base::FloatToFp8(middle * 0.999f), number) << bits;
      EXPECT_EQ(base::FloatToFp8(middle * 1.001f), number + 1) << bits;
      EXPECT_EQ(base::FloatToFp8(middle), number % 2 == 0 ? number : number + 1) << bits;
    }
  }
  EXPECT_EQ(base::FloatToFp8(1e9f), 0x7e);
  EXPECT_EQ(base::FloatToFp8(-1e9f), 0xfe);
}

class Fp8CheckpointTest : public testing::Test {
 protected:
  void ExpectError(absl::StatusCode code, const std::string& message) {
    model_.Write();
    const absl::Status status = Checkpoint::Open(directory_.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(base::MessageOf(status), HasSubstr(message));
  }

  const TemporaryDirectory directory_;
  Fp8Model model_{directory_.path()};
};

TEST_F(Fp8CheckpointTest, GivesOutWhatTheJudgeComputes) {
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->spec().weight_dtype, spec::DType::kBf16);
  int widened_count = 0;
  for (const auto& [role, layer, expert] : TensorKeys(TinySpec())) {
    const std::string name = (*checkpoint)->TensorName(role, layer, expert);
    const TensorView& view = (*checkpoint)->Tensor(role, layer, expert);
    EXPECT_EQ(view.shape, ShapeOf(TinySpec(), role));
    EXPECT_EQ(view.dtype, (*checkpoint)->DTypeOf(role, layer, expert));
    EXPECT_EQ(view.dtype == spec::DType::kF32, model_.IsFp8(name)) << name;
    if (model_.IsFp8(name)) {
      const std::vector<float> expected = model_.Judge(name);
      const auto expected_bytes = std::as_bytes(std::span(expected));
      EXPECT_TRUE(std::ranges::equal(view.bytes, expected_bytes)) << name;
      ++widened_count;
    }
  }
  EXPECT_EQ(widened_count, 3 * 4 + 3 + 2 * 5 * 3);  // attention, the dense layer, the experts
}

TEST_F(Fp8CheckpointTest, WidensAgainAfterARelease) {
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  (*checkpoint)->Release((*checkpoint)->Tensor(TensorRole::kExpertUp, 2, 4));
  const std::vector<float> expected = model_.Judge(kExpertUpName);
  EXPECT_TRUE(std::ranges::equal((*checkpoint)->Tensor(TensorRole::kExpertUp, 2, 4).bytes,
                                 std::as_bytes(std::span(expected))));
}

TEST_F(Fp8CheckpointTest, GivesOutExpertsAsTheyAre) {
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const Fp8Blocks blocks = {kTestBlockRows, kTestBlockCols};
  ASSERT_EQ((*checkpoint)->expert_fp8_blocks(), blocks);
  const Fp8Copy copy = (*checkpoint)->ReadFp8(TensorRole::kExpertUp, 2, 4);
  const std::vector<int64_t> shape = ShapeOf(TinySpec(), TensorRole::kExpertUp);
  std::vector<float> values;
  for (int64_t row = 0; row < shape[0]; ++row) {
    for (int64_t col = 0; col < shape[1]; ++col) {
      const auto bits = static_cast<uint8_t>(copy.numbers.at(row * shape[1] + col));
      values.push_back(JudgeFp8(bits) * copy.scales.at(blocks.ScaleIndex(row, col, shape[1])));
    }
  }
  EXPECT_EQ(values, model_.Judge(kExpertUpName));
}

TEST_F(Fp8CheckpointTest, HasNo8BitExpertsIfOneIsWider) {
  const std::vector<int64_t> shape = ShapeOf(TinySpec(), TensorRole::kExpertUp);
  model_.Remove(std::string(kExpertUpName) + "_scale_inv");
  model_.Add(kExpertUpName, "BF16", shape, std::vector<std::byte>(2 * shape[0] * shape[1]));
  model_.Write();
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->expert_fp8_blocks(), std::nullopt);
}

TEST_F(Fp8CheckpointTest, NamesScalesThatAreMissing) {
  model_.Remove(std::string(kQuery) + "_scale_inv");
  ExpectError(absl::StatusCode::kNotFound,
              "tensor 'model.layers.0.self_attn.q_proj.weight_scale_inv', the scales of");
}

TEST_F(Fp8CheckpointTest, NamesScalesOfTheWrongShape) {
  model_.Add(std::string(kQuery) + "_scale_inv", "F32", {6, 3}, std::vector<std::byte>(72));
  ExpectError(absl::StatusCode::kInvalidArgument,
              "q_proj.weight_scale_inv' has shape [6, 3], but config.json promises [6, 4]");
}

TEST_F(Fp8CheckpointTest, NamesNumbersOfTheWrongShape) {
  model_.Add(kQuery, "F8_E4M3", {48, 21}, std::vector<std::byte>(48 * 21));
  ExpectError(absl::StatusCode::kInvalidArgument, "q_proj.weight' has shape [48, 21]");
}

TEST_F(Fp8CheckpointTest, NamesScalesOfNothing) {
  model_.Add("model.layers.0.mlp.gate.weight_scale_inv", "F32", {1, 1}, std::vector<std::byte>(4));
  ExpectError(absl::StatusCode::kInvalidArgument,
              "tensor 'model.layers.0.mlp.gate.weight_scale_inv' has no place");
}

TEST_F(Fp8CheckpointTest, RefusesHalfPrecisionScales) {
  model_.Add(std::string(kQuery) + "_scale_inv", "F16", {6, 4}, std::vector<std::byte>(48));
  ExpectError(absl::StatusCode::kUnimplemented, "only bf16 and f32 scales are read");
}

TEST_F(Fp8CheckpointTest, RefusesVectorsOf8BitNumbers) {
  model_.Add("model.norm.weight", "F8_E4M3", {20}, std::vector<std::byte>(20));
  ExpectError(absl::StatusCode::kInvalidArgument, "only matrices have scales");
}

TEST_F(Fp8CheckpointTest, NeedsTheConfigToSayHow) {
  EditText(directory_.File("config.json"), "quantization_config", "other");
  ExpectError(absl::StatusCode::kInvalidArgument, "config.json has no quantization_config");
}

TEST_F(Fp8CheckpointTest, RefusesOtherQuantizations) {
  const std::string config = ReadText(directory_.File("config.json"));
  const auto expect_refused = [&](std::string_view from,
                                  std::string_view to,
                                  absl::StatusCode code,
                                  const std::string& message) {
    EditText(directory_.File("config.json"), from, to);
    ExpectError(code, message);
    WriteText(directory_.File("config.json"), config);
  };
  expect_refused("\"fp8\"", "\"awq\"", absl::StatusCode::kUnimplemented, "quant_method' is 'awq'");
  expect_refused("e4m3", "e5m2", absl::StatusCode::kUnimplemented, "fmt' is 'e5m2'");
  expect_refused("dynamic", "static", absl::StatusCode::kUnimplemented, "is 'static'");
  expect_refused("[8,6]", "[8]", absl::StatusCode::kInvalidArgument, "weight_block_size' has 1");
  expect_refused("[8,6]", "[8,0]", absl::StatusCode::kInvalidArgument, "weight_block_size'");
}

}  // namespace
}  // namespace zp::checkpoint
