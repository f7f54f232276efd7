// Widened panels against the packed form of the widened weight, byte for byte.
#include "ops/cpu/fp8_panels.h"

#include <array>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>

#include "base/float8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/cpu/fp8_widen.h"
#include "ops/cpu/random_fp8.h"
#include "ops/cpu/row_kernels.h"

namespace zp::ops::cpu {
namespace {

constexpr spec::DType kBf16 = spec::DType::kBf16;
constexpr spec::DType kF32 = spec::DType::kF32;

// Stored in f32, as rounded to bf16 and as not.
void ExpectInF32(const std::vector<std::byte>& numbers, int64_t count, float scale) {
  for (const spec::DType rounded : {kBf16, kF32}) {
    std::vector<float> expected;
    for (int64_t i = 0; i < count; ++i) {
      const float value = base::Fp8ToFloat(static_cast<uint8_t>(numbers[i])) * scale;
      expected.push_back(rounded == kF32 ? value : static_cast<float>(base::BFloat16(value)));
    }
    std::vector<float> wide(count + 1);
    WidenFp8(
        numbers.data(), count, scale, {rounded, kF32}, reinterpret_cast<std::byte*>(wide.data()));
    ASSERT_EQ(std::memcmp(wide.data(), expected.data(), sizeof(float) * count), 0) << scale;
    ASSERT_EQ(wide[count], 0.0f) << "wrote beyond its end";
  }
}

// All numbers, denormals, -0 and 448 among them, times scales that make results of any size down to
// the denormals of bf16.
TEST(WidenFp8, IsExactForEveryNumber) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<std::byte> numbers;
  for (int bits = 0; bits < 510; ++bits) {  // twice, for runs that are worth a table
    if (bits % 255 != base::kFp8Nan) {
      numbers.push_back(static_cast<std::byte>(bits % 255));
    }
  }
  std::uniform_real_distribution<float> any_exponent(-140, 110);
  for (int round = 0; round < 2000; ++round) {
    const float scale = std::exp2(any_exponent(random)) * (round % 2 == 0 ? 1.0f : -1.0f);
    std::shuffle(numbers.begin(), numbers.end(), random);
    const auto count = static_cast<int64_t>(1 + random() % numbers.size());
    std::vector<base::BFloat16> expected;
    for (int64_t i = 0; i < count; ++i) {
      expected.emplace_back(base::Fp8ToFloat(static_cast<uint8_t>(numbers[i])) * scale);
    }
    std::vector<base::BFloat16> wide(count + 1);
    auto* bytes = reinterpret_cast<std::byte*>(wide.data());
    WidenFp8(numbers.data(), count, scale, {kBf16, kBf16}, bytes);
    ASSERT_EQ(std::memcmp(bytes, expected.data(), 2 * count), 0) << scale;
    ExpectInF32(numbers, count, scale);
    if (HasByteLookup()) {
      std::fill(wide.begin(), wide.end(), base::BFloat16());
      WidenFp8ToBf16ByLookup(numbers.data(), count, scale, bytes);
      ASSERT_EQ(std::memcmp(bytes, expected.data(), 2 * count), 0) << scale;
    }
    ASSERT_EQ(wide[count].bits, 0) << "wrote beyond its end";
  }
}

struct Shape {
  int64_t out_dim;
  int64_t in_dim;
  spec::Fp8Blocks blocks;
};

// Blocks that divide, that do not, of one number, of more than all.
constexpr std::array kShapes = {Shape{1, 1, {128, 128}},
                                Shape{40, 24, {8, 6}},
                                Shape{33, 17, {1, 1}},
                                Shape{130, 70, {7, 5}},
                                Shape{520, 333, {128, 128}},
                                Shape{1000, 64, {1, 64}},
                                Shape{300, 96, {1000, 3}},
                                Shape{640, 512, {128, 128}}};

// Of packed numbers, and of products.
struct Numbers {
  spec::DType packed;
  spec::DType product;
};

class Fp8PanelsTest : public testing::TestWithParam<Numbers> {
 protected:
  void SetUp() override {
    if (GetParam().product == kBf16 && OneDnnProduct::FastestFor(kBf16) != kBf16) {
      GTEST_SKIP() << "this CPU has no bf16 instructions";
    }
    std::cout << "seed " << seed_ << "\n";
    product_ = std::make_unique<OneDnnProduct>(GetParam().packed, GetParam().product, 1);
    panels_ = std::make_unique<Fp8Panels>(*product_);
  }

  // A panel of 8-bit numbers against that of the weight that was widened before packing.
  void ExpectEqualPanel(const WidenPlan& plan,
                        const std::byte* packed,
                        const float* scales,
                        const memory::Buffer& expected,
                        int64_t panel) {
    const auto [packed_dtype, product_dtype] = GetParam();
    const size_t count = plan.first_numbers[panel + 1] - plan.first_numbers[panel];
    const size_t bytes = count * spec::SizeOf(product_dtype);
    const memory::Buffer widened(bytes, "test");
    WidenFp8Panel(plan, panel, packed, scales, {packed_dtype, product_dtype}, widened.data());
    const size_t offset = plan.first_numbers[panel] * spec::SizeOf(packed_dtype);
    const memory::Buffer wide(bytes, "test");
    if (packed_dtype == product_dtype) {
      std::memcpy(wide.data(), expected.data() + offset, bytes);
    } else {
      WidenRow(
          expected.data() + offset, packed_dtype, static_cast<int64_t>(count), wide.as<float>());
    }
    EXPECT_EQ(std::memcmp(widened.data(), wide.data(), bytes), 0) << panel;
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  std::unique_ptr<OneDnnProduct> product_;
  std::unique_ptr<Fp8Panels> panels_;
};

TEST_P(Fp8PanelsTest, AreThePackedFormOfTheWidenedWeight) {
  for (const Shape& shape : kShapes) {
    for (const bool gated : {false, true}) {
      const OwnedFp8 weight = RandomFp8(random_, shape.out_dim, shape.in_dim, shape.blocks);
      const OwnedFp8 up = RandomFp8(random_, shape.out_dim, shape.in_dim, shape.blocks);
      const OwnedMatrix wide = Widened(weight);
      const OwnedMatrix wide_up = Widened(up);
      memory::Buffer expected(product_->packed_bytes(shape.out_dim, shape.in_dim, gated), "test");
      const ConstMatrix up_view = wide_up.view;
      product_->Pack(wide.view, gated ? &up_view : nullptr, expected.bytes());
      memory::Buffer packed(panels_->packed_bytes(shape.out_dim, shape.in_dim, gated), "test");
      const Fp8Matrix fp8_up = up.view();
      panels_->Pack(weight.view(), gated ? &fp8_up : nullptr, packed.bytes());
      std::vector<float> scales = weight.scales;
      scales.insert(scales.end(), up.scales.begin(), up.scales.end());
      const WidenPlan& plan = panels_->PlanFor(shape.out_dim, shape.in_dim, gated, shape.blocks);
      EXPECT_EQ(plan.first_numbers.back() * spec::SizeOf(GetParam().packed), expected.size_bytes());
      for (int64_t panel = 0; panel < product_->panel_count(shape.out_dim, gated); ++panel) {
        ExpectEqualPanel(plan, packed.data(), scales.data(), expected, panel);
      }
    }
  }
}

// What the speed rests on: blocks of 128 stay long runs in whatever order oneDNN packs.
TEST_P(Fp8PanelsTest, HaveLongRunsForPublishedShapes) {
  const WidenPlan& plan = panels_->PlanFor(768, 2048, /*gated=*/true, {128, 128});
  EXPECT_LE(plan.runs.size(), 2 * 768 * 2048 / 1024);
}

INSTANTIATE_TEST_SUITE_P(Numbers,
                         Fp8PanelsTest,
                         testing::Values(Numbers{kBf16, kBf16},
                                         Numbers{kBf16, kF32},
                                         Numbers{kF32, kF32}),
                         [](const auto& info) {
                           return std::string(NameOf(info.param.packed)) + "As" +
                                  std::string(NameOf(info.param.product));
                         });

}  // namespace
}  // namespace zp::ops::cpu
