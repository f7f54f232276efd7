#include "model/finite.h"

#include <cstdint>
#include <limits>
#include <vector>

#include "base/bfloat16.h"
#include "gtest/gtest.h"

namespace zp::model {
namespace {

template <typename T>
std::span<const std::byte> BytesOf(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

TEST(FirstNonFinite, FindsTheFirstNanOrInfinityInEveryFormat) {
  std::vector<float> floats(10'000, 3e38f);
  EXPECT_EQ(FirstNonFinite(BytesOf(floats), spec::DType::kF32), -1);
  floats[9'000] = -std::numeric_limits<float>::infinity();
  floats[8'191] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(FirstNonFinite(BytesOf(floats), spec::DType::kF32), 8'191);

  std::vector<base::BFloat16> halves(77, base::BFloat16(-1.0f));
  EXPECT_EQ(FirstNonFinite(BytesOf(halves), spec::DType::kBf16), -1);
  halves[76] = base::BFloat16(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(FirstNonFinite(BytesOf(halves), spec::DType::kBf16), 76);

  std::vector<uint16_t> f16(5, 0x7bff);  // the largest f16
  EXPECT_EQ(FirstNonFinite(BytesOf(f16), spec::DType::kF16), -1);
  f16[0] = 0x7c00;  // infinity
  EXPECT_EQ(FirstNonFinite(BytesOf(f16), spec::DType::kF16), 0);
}

TEST(FirstNonFinite, AcceptsNothing) { EXPECT_EQ(FirstNonFinite({}, spec::DType::kF32), -1); }

}  // namespace
}  // namespace zp::model
