#include "base/units.h"

#include "gtest/gtest.h"

namespace zp::base {
namespace {

TEST(ParseBytes, ReadsBinaryDecimalAndBareCounts) {
  EXPECT_EQ(*ParseBytes("4GiB"), int64_t{4} << 30);
  EXPECT_EQ(*ParseBytes("512 MiB"), int64_t{512} << 20);
  EXPECT_EQ(*ParseBytes("1.5GB"), 1'500'000'000);
  EXPECT_EQ(*ParseBytes("4096"), 4096);
}

TEST(ParseBytes, RefusesWhatIsNoByteCount) {
  for (const char* text : {"", "GiB", "4 apples", "-1GiB", "4gib", "99999999999999TiB"}) {
    EXPECT_EQ(ParseBytes(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(FormatBytes, PicksTheUnit) {
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(0), "0 B");
}

}  // namespace
}  // namespace zp::base
