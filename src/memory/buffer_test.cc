#include "memory/buffer.h"

#include <cstdint>
#include <utility>

#include "gtest/gtest.h"

namespace zp::memory {
namespace {

TEST(Buffer, IsZeroFilledAndAligned) {
  for (const size_t size_bytes : {size_t{1}, size_t{4097}, (size_t{2} << 20) + 3}) {
    Buffer buffer(size_bytes, "test");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 4096, 0u);
    EXPECT_EQ(buffer.bytes().front(), std::byte{0});
    EXPECT_EQ(buffer.bytes().back(), std::byte{0});
  }
}

TEST(Buffer, CountsItsBytesUnderItsTagUntilItGoes) {
  {
    Buffer buffer(10'000, "counted");
    EXPECT_EQ(TaggedBytes()["counted"], 12'288u);
    Buffer moved = std::move(buffer);
    EXPECT_EQ(TaggedBytes()["counted"], 12'288u);
    moved.EnsureBytes(20'000, "counted");
    EXPECT_EQ(TaggedBytes()["counted"], 20'480u);
  }
  EXPECT_EQ(TaggedBytes()["counted"], 0u);
}

}  // namespace
}  // namespace zp::memory
