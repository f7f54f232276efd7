// Widened panels against the packed form of the widened weight, byte for byte.
#include "ops/cpu/fp8_panels.h"

#include <array>
#include <cmath>
#include <cstring>
#include <iostream>
#include <random>

#include "base/float8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "oneapi/dnnl/dnnl.hpp"
#include "ops/cpu/fp8_widen.h"
#include "ops/cpu/random_fp8.h"

namespace zp::ops::cpu {
namespace {

constexpr spec::DType kBf16 = spec::DType::kBf16;
constexpr spec::DType kF32 = spec::DType::kF32;

// All numbers, denormals, -0 and 448 among them, times scales that make results of any size down to
// the denormals of bf16.
TEST(WidenFp8, IsExactForEveryNumber) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<std::byte> numbers;
  for (int bits = 0; bits < 255; ++bits) {
    if (bits != base::kFp8Nan) {
      numbers.push_back(static_cast<std::byte>(bits));
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
    WidenFp8(numbers.data(), count, scale, kBf16, bytes);
    ASSERT_EQ(std::memcmp(bytes, expected.data(), 2 * count), 0) << scale;
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

class Fp8PanelsTest : public testing::TestWithParam<spec::DType> {
 protected:
  void SetUp() override {
    if (GetParam() == kBf16 && OneDnnProduct::WeightDTypeFor(kBf16) != kBf16) {
      GTEST_SKIP() << "oneDNN multiplies bf16 from AVX-512 on";
    }
    std::cout << "seed " << seed_ << "\n";
  }

  // The panels [begin, end), widened and packed wide.
  void ExpectEqualPanels(const WidenPlan& plan,
                         const std::byte* packed,
                         const float* scales,
                         const memory::Buffer& expected,
                         PanelRange panels,
                         int64_t in_dim) {
    memory::Buffer widened(panels_.widened_bytes(plan, panels), "test");
    panels_.Widen(plan, packed, scales, panels, widened.data());
    const size_t offset = product_.PanelOffset(panels.begin, in_dim);
    ASSERT_LE(offset + widened.size_bytes(), expected.size_bytes());
    EXPECT_EQ(std::memcmp(widened.data(), expected.data() + offset, widened.size_bytes()), 0)
        << panels.begin << " to " << panels.end;
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  OneDnnProduct product_{GetParam(), GetParam(), 1};
  Fp8Panels panels_{product_};
};

TEST_P(Fp8PanelsTest, AreThePackedFormOfTheWidenedWeight) {
  for (const Shape& shape : kShapes) {
    for (const bool gated : {false, true}) {
      const OwnedFp8 weight = RandomFp8(random_, shape.out_dim, shape.in_dim, shape.blocks);
      const OwnedFp8 up = RandomFp8(random_, shape.out_dim, shape.in_dim, shape.blocks);
      const OwnedMatrix wide = Widened(weight);
      const OwnedMatrix wide_up = Widened(up);
      memory::Buffer expected(product_.packed_bytes(shape.out_dim, shape.in_dim, gated), "test");
      const ConstMatrix up_view = wide_up.view;
      product_.Pack(wide.view, gated ? &up_view : nullptr, expected.bytes());
      memory::Buffer packed(panels_.packed_bytes(shape.out_dim, shape.in_dim, gated), "test");
      const Fp8Matrix fp8_up = up.view();
      panels_.Pack(weight.view(), gated ? &fp8_up : nullptr, packed.bytes());
      std::vector<float> scales = weight.scales;
      scales.insert(scales.end(), up.scales.begin(), up.scales.end());
      const WidenPlan& plan = panels_.PlanFor(shape.out_dim, shape.in_dim, gated, shape.blocks);
      const int64_t panel_count = product_.panel_count(shape.out_dim, gated);
      const PanelRange all = {0, panel_count};
      EXPECT_EQ(panels_.widened_bytes(plan, all), expected.size_bytes());
      ExpectEqualPanels(plan, packed.data(), scales.data(), expected, all, shape.in_dim);
      for (int64_t panel = 0; panel < panel_count; ++panel) {
        ExpectEqualPanels(
            plan, packed.data(), scales.data(), expected, {panel, panel + 1}, shape.in_dim);
      }
    }
  }
}

// What the speed rests on: blocks of 128 stay long runs in whatever order oneDNN packs. Where it
// emulates bf16 it interleaves in another order, of runs of 64; such a CPU is slow in bf16 anyway.
TEST_P(Fp8PanelsTest, HaveLongRunsForPublishedShapes) {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  if (GetParam() == kBf16 && isa != dnnl::cpu_isa::avx512_core_bf16 &&
      isa != dnnl::cpu_isa::avx512_core_amx) {
    GTEST_SKIP() << "this CPU has no bf16 instructions";
  }
  const WidenPlan& plan = panels_.PlanFor(768, 2048, /*gated=*/true, {128, 128});
  EXPECT_LE(plan.runs.size(), 2 * 768 * 2048 / 1024);
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         Fp8PanelsTest,
                         testing::Values(kBf16, kF32),
                         [](const auto& dtype) { return std::string(NameOf(dtype.param)); });

}  // namespace
}  // namespace zp::ops::cpu
