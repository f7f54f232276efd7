#include "checkpoint/synthetic.h"

#include <cmath>
#include <cstring>
#include <thread>

#include "base/bfloat16.h"
#include "base/float8.h"
#include "checkpoint/random_tensor.h"
#include "checkpoint/tensor_table.h"
#include "checkpoint/testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string BytesOf(const TensorView& view) {
  return {reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size()};
}

std::vector<float> Floats(const RandomTensor& numbers, size_t count) {
  std::vector<float> values(count);
  numbers.Fill(0, std::as_writable_bytes(std::span(values)));
  return values;
}

TEST(RandomTensor, HasTheMeanAndDeviationAskedFor) {
  const std::vector<float> values =
      Floats(RandomTensor(1, "w", spec::DType::kF32, 3.0f, 0.5f), 100'000);
  double sum = 0;
  double square_sum = 0;
  for (const float value : values) {
    sum += value;
    square_sum += value * value;
  }
  const double mean = sum / values.size();
  EXPECT_NEAR(mean, 3.0, 0.01);
  EXPECT_NEAR(std::sqrt(square_sum / values.size() - mean * mean), 0.5, 0.01);
}

TEST(RandomTensor, HasNoCorrelationBetweenNeighbours) {
  const std::vector<float> values =
      Floats(RandomTensor(1, "w", spec::DType::kF32, 0.0f, 1.0f), 100'000);
  for (const size_t distance : {1, 2, 3, 4, 64, 2048}) {
    double product_sum = 0;
    for (size_t i = distance; i < values.size(); ++i) {
      product_sum += values[i] * values[i - distance];
    }
    EXPECT_NEAR(product_sum / values.size(), 0.0, 0.015) << distance;
  }
}

TEST(RandomTensor, GivesTheSameNumbersInPartsAsInOnePiece) {
  const RandomTensor numbers(5, "w", spec::DType::kBf16, 0.0f, 1.0f);
  std::vector<uint16_t> whole(1001);
  numbers.Fill(0, std::as_writable_bytes(std::span(whole)));
  std::vector<uint16_t> parts(1001);
  numbers.Fill(0, std::as_writable_bytes(std::span(parts).first(400)));
  numbers.Fill(400, std::as_writable_bytes(std::span(parts).subspan(400)));
  EXPECT_EQ(whole, parts);
}

TEST(RandomTensor, DependsOnSeedAndName) {
  const auto first = Floats(RandomTensor(1, "w", spec::DType::kF32, 0, 1), 8);
  EXPECT_NE(first, Floats(RandomTensor(2, "w", spec::DType::kF32, 0, 1), 8));
  EXPECT_NE(first, Floats(RandomTensor(1, "v", spec::DType::kF32, 0, 1), 8));
}

// So that a figure measured on a synthetic model today can be compared with one of next year.
TEST(RandomTensor, GivesTheSameNumbersForever) {
  std::vector<uint16_t> bits(4);
  RandomTensor(1, "w", spec::DType::kBf16, 0, 1).Fill(0, std::as_writable_bytes(std::span(bits)));
  EXPECT_THAT(bits, ElementsAre(0x3f36, 0xc001, 0xbf99, 0x3ee8));
}

TEST(RandomTensor, WritesHalfPrecision) {
  std::vector<uint16_t> bits(64);
  RandomTensor(1, "w", spec::DType::kF16, 1.0f, 0.0f)
      .Fill(0, std::as_writable_bytes(std::span(bits)));
  EXPECT_EQ(bits[0], 0x3c00);
  const auto floats = Floats(RandomTensor(1, "w", spec::DType::kF32, 0, 1), 64);
  RandomTensor(1, "w", spec::DType::kF16, 0, 1).Fill(0, std::as_writable_bytes(std::span(bits)));
  for (size_t i = 0; i < bits.size(); ++i) {
    EXPECT_NEAR(static_cast<float>(std::bit_cast<_Float16>(bits[i])), floats[i], 1e-3) << i;
  }
}

TEST(RandomTensor, Writes8BitNumbers) {
  std::vector<uint8_t> bits(10'001);
  RandomTensor::OfFp8(1, "w", 64.0f).Fill(0, std::as_writable_bytes(std::span(bits)));
  const auto floats = Floats(RandomTensor(1, "w", spec::DType::kF32, 0, 64), bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    EXPECT_NEAR(base::Fp8ToFloat(bits[i]), floats[i], std::abs(floats[i]) / 16 + 0x1p-10f) << i;
  }
}

TEST(Synthetic, GeneratesEveryTensorOfTheSpec) {
  const spec::ModelSpec spec = TinySpec();
  const auto checkpoint = CreateSynthetic(spec, 1);
  for (const auto& [role, layer, expert] : TensorKeys(spec)) {
    const TensorView& view = checkpoint->Tensor(role, layer, expert);
    EXPECT_EQ(view.shape, ShapeOf(spec, role));
    EXPECT_EQ(view.dtype, spec::DType::kBf16);
    for (size_t i = 0; i < view.bytes.size(); i += 2) {
      base::BFloat16 number;
      std::memcpy(&number, view.bytes.data() + i, 2);
      ASSERT_LT(std::abs(static_cast<float>(number)), 4.0f);
    }
  }
}

TEST(Synthetic, RegeneratesReleasedTensors) {
  const auto checkpoint = CreateSynthetic(TinySpec(), 1);
  const TensorView copy = checkpoint->Tensor(TensorRole::kExpertUp, 2, 4);
  const std::string before = BytesOf(copy);
  checkpoint->Release(copy);
  checkpoint->Release(copy);
  EXPECT_EQ(BytesOf(checkpoint->Tensor(TensorRole::kExpertUp, 2, 4)), before);
}

TEST(Synthetic, GivesTiedHeadsTheEmbedding) {
  spec::ModelSpec spec = TinySpec();
  spec.tied_embeddings = true;
  const auto checkpoint = CreateSynthetic(spec, 1);
  EXPECT_EQ(checkpoint->Tensor(TensorRole::kOutputHead).bytes.data(),
            checkpoint->Tensor(TensorRole::kEmbedding).bytes.data());
}

TEST(Synthetic, GivesManyThreadsTheSameTensors) {
  const spec::ModelSpec spec = TinySpec();
  const auto shared = CreateSynthetic(spec, 3);
  const auto alone = CreateSynthetic(spec, 3);
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (const auto& [role, layer, expert] : TensorKeys(spec)) {
        shared->Tensor(role, layer, expert);
      }
    });
  }
  threads.clear();
  for (const auto& [role, layer, expert] : TensorKeys(spec)) {
    EXPECT_EQ(BytesOf(shared->Tensor(role, layer, expert)),
              BytesOf(alone->Tensor(role, layer, expert)));
  }
}

class WriteSyntheticTest : public testing::TestWithParam<spec::DType> {};

TEST_P(WriteSyntheticTest, WritesTheNumbersThatCreateGives) {
  const TemporaryDirectory directory;
  spec::ModelSpec spec = TinySpec();
  spec.weight_dtype = GetParam();
  int64_t last_done = 0;
  int64_t last_total = 0;
  const absl::Status status = WriteSynthetic(
      spec,
      9,
      directory.File("model"),
      [&](int64_t done, int64_t total) {
        EXPECT_GT(done, last_done);
        last_done = done;
        last_total = total;
      },
      /*max_shard_bytes=*/20'000);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(last_done, last_total);

  const auto read = Checkpoint::Open(directory.File("model"));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->spec().weight_dtype, GetParam());
  const auto created = CreateSynthetic(spec, 9);
  for (const auto& [role, layer, expert] : TensorKeys(spec)) {
    EXPECT_EQ(BytesOf((*read)->Tensor(role, layer, expert)),
              BytesOf(created->Tensor(role, layer, expert)));
  }
}

INSTANTIATE_TEST_SUITE_P(AllDTypes,
                         WriteSyntheticTest,
                         testing::Values(spec::DType::kBf16, spec::DType::kF16, spec::DType::kF32));

TEST(WriteSynthetic, WritesThe8BitNumbersThatCreateGives) {
  const TemporaryDirectory directory;
  const spec::ModelSpec spec = TinySpec();
  const spec::Fp8Blocks blocks = {8, 6};
  int64_t last_done = 0;
  int64_t last_total = 0;
  const absl::Status status = WriteSynthetic(
      spec,
      9,
      directory.File("model"),
      [&](int64_t done, int64_t total) {
        last_done = done;
        last_total = total;
      },
      /*max_shard_bytes=*/5'000,
      blocks);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(last_done, last_total);
  const auto read = Checkpoint::Open(directory.File("model"));
  ASSERT_TRUE(read.ok()) << read.status();
  const auto created = CreateSynthetic(spec, 9, "", blocks);
  EXPECT_EQ((*read)->expert_fp8_blocks(), blocks);
  EXPECT_EQ(created->expert_fp8_blocks(), blocks);
  for (const auto& [role, layer, expert] : TensorKeys(spec)) {
    EXPECT_EQ((*read)->DTypeOf(role, layer, expert), created->DTypeOf(role, layer, expert));
    EXPECT_EQ(BytesOf((*read)->Tensor(role, layer, expert)),
              BytesOf(created->Tensor(role, layer, expert)));
    if (expert >= 0) {
      EXPECT_EQ((*read)->DTypeOf(role, layer, expert), spec::DType::kF32);
      const Fp8Copy from_file = (*read)->ReadFp8(role, layer, expert);
      const Fp8Copy from_memory = created->ReadFp8(role, layer, expert);
      EXPECT_EQ(from_file.numbers, from_memory.numbers);
      EXPECT_EQ(from_file.scales, from_memory.scales);
    }
  }
}

TEST(WriteSynthetic, LeavesAModelThatIsThereAlone) {
  const TemporaryDirectory directory;
  WriteText(directory.File("config.json"), "{}");
  const absl::Status status =
      WriteSynthetic(TinySpec(), 1, directory.path(), [](int64_t, int64_t) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadText(directory.File("config.json")), "{}");
}

TEST(WriteSynthetic, RefusesAModelLargerThanTheDisk) {
  const TemporaryDirectory directory;
  spec::ModelSpec spec = TinySpec();
  spec.vocab_count = 1 << 22;
  spec.model_dim = 1 << 17;
  spec.expert_dim = 1 << 20;
  spec.expert_count = 4096;
  const absl::Status status = WriteSynthetic(spec, 1, directory.path(), [](int64_t, int64_t) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(WriteSynthetic, NeedsATokenForEachByte) {
  const TemporaryDirectory directory;
  spec::ModelSpec spec = TinySpec();
  spec.vocab_count = 200;
  const absl::Status status = WriteSynthetic(spec, 1, directory.path(), [](int64_t, int64_t) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("200 tokens"));
}

}  // namespace
}  // namespace zp::checkpoint
