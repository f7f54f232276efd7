#include "checkpoint/safetensors_header.h"

#include <random>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::checkpoint {
namespace {

using testing::HasSubstr;

constexpr const char* kTwoTensors = R"({"__metadata__":{"format":"pt"},)"
                                    R"("b":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]},)"
                                    R"("a":{"shape":[4],"data_offsets":[0,8],"dtype":"BF16"}}   )";

absl::Status StatusOf(std::string_view header, uint64_t data_bytes) {
  return ParseSafetensorsHeader(header, data_bytes, "m.safetensors").status();
}

void ExpectRefused(std::string_view header, uint64_t data_bytes, const std::string& message) {
  const absl::Status status = StatusOf(header, data_bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << header;
  EXPECT_THAT(base::MessageOf(status), HasSubstr("m.safetensors: ")) << header;
  EXPECT_THAT(base::MessageOf(status), HasSubstr(message)) << header;
}

// A header with one tensor "t".
std::string OneTensor(std::string_view fields) { return fmt::format(R"({{"t":{{{}}}}})", fields); }

TEST(SafetensorsHeader, ReadsEntriesInTheOrderOfTheirBytes) {
  const auto entries = ParseSafetensorsHeader(kTwoTensors, 32, "m.safetensors");
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 2);
  EXPECT_EQ((*entries)[0].name, "a");
  EXPECT_EQ((*entries)[0].dtype, spec::DType::kBf16);
  EXPECT_EQ((*entries)[1].name, "b");
  EXPECT_EQ((*entries)[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*entries)[1].begin, 8);
  EXPECT_EQ((*entries)[1].end, 32);
}

TEST(SafetensorsHeader, AcceptsScalarsEmptyTensorsAndNoTensors) {
  EXPECT_TRUE(StatusOf(OneTensor(R"("dtype":"F32","shape":[],"data_offsets":[0,4])"), 4).ok());
  EXPECT_TRUE(StatusOf(OneTensor(R"("dtype":"F32","shape":[0,7],"data_offsets":[0,0])"), 0).ok());
  EXPECT_TRUE(StatusOf("{}", 0).ok());
}

TEST(SafetensorsHeader, UnderstandsEscapesInNames) {
  const auto entries = ParseSafetensorsHeader(
      R"({"a\"\\\u0041\u00e9":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})", 2, "m");
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_EQ((*entries)[0].name, "a\"\\A\xc3\xa9");
}

TEST(SafetensorsHeader, RefusesWhatIsNoHeader) {
  ExpectRefused("", 0, "expected '{' at byte 0");
  ExpectRefused("[]", 0, "expected '{' at byte 0");
  ExpectRefused("{}x", 0, "expected nothing but spaces");
  ExpectRefused(R"({"t)", 0, "expected the end of a string");
  ExpectRefused(R"({"t\q":1})", 0, "an escape that JSON knows");
  ExpectRefused(R"({"t\u12g4":1})", 0, "four hexadecimal digits");
  ExpectRefused("{\"t\n\":1}", 0, "no control character");
  ExpectRefused(R"({"t":7})", 0, "expected '{' at byte 5");
  ExpectRefused(R"({"__metadata__":{"format":1}})", 0, "expected '\"'");
  ExpectRefused(R"({"t":{}})", 0, "dtype, shape and data_offsets");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1)"),
                4,
                "each of dtype, shape, data_offsets once");
  ExpectRefused(OneTensor(R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])"),
                4,
                "each of dtype, shape, data_offsets once");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"),
                4,
                "a whole number without sign");
  ExpectRefused(
      OneTensor(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), 4, "expected ']'");
}

TEST(SafetensorsHeader, RefusesNestingOfAnyDepth) {
  ExpectRefused(std::string(1'000'000, '['), 0, "expected '{'");
  ExpectRefused(R"({"t":{"shape":)" + std::string(1'000'000, '['), 0, "a whole number");
}

TEST(SafetensorsHeader, RefusesTwoTensorsOfOneName) {
  ExpectRefused(R"({"t":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
                R"("t":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}})",
                4,
                "names 't' twice");
}

TEST(SafetensorsHeader, RefusesDtypesItCannotRead) {
  const absl::Status status =
      StatusOf(OneTensor(R"("dtype":"F8_E5M2","shape":[4],"data_offsets":[0,4])"), 4);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("tensor 't' has dtype 'F8_E5M2'"));
}

TEST(SafetensorsHeader, RefusesOffsetsThatDoNotFit) {
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4, "run backwards");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"),
                4,
                "reach beyond the 4 data bytes");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), 8, "needs 2 numbers");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])"),
                8,
                "no more numbers in this list");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616])"),
                8,
                "a number below 2^64");
}

TEST(SafetensorsHeader, RefusesShapesThatContradictTheBytes) {
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[2,3],"data_offsets":[0,20])"),
                20,
                "F32 of shape [2, 3] takes 24 bytes, but data_offsets [0, 20] hold 20");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"),
                4,
                "no more numbers in this list");
}

TEST(SafetensorsHeader, RefusesShapesWhoseProductOverflows) {
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[4294967296,1073741824],"data_offsets":[0,0])"),
                0,
                "larger than any memory");
  ExpectRefused(OneTensor(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,0])"),
                0,
                "larger than any memory");
}

TEST(SafetensorsHeader, RefusesOverlapsGapsAndSpareBytes) {
  const auto two = [](int begin, int end) {
    return fmt::format(R"({{"a":{{"dtype":"F16","shape":[2],"data_offsets":[0,4]}},)"
                       R"("b":{{"dtype":"F16","shape":[2],"data_offsets":[{},{}]}}}})",
                       begin,
                       end);
  };
  EXPECT_TRUE(StatusOf(two(4, 8), 8).ok());
  ExpectRefused(
      two(2, 6), 8, "tensor 'b' begins at data byte 2, but the tensor before it ends at 4");
  ExpectRefused(two(6, 10), 10, "leave a gap");
  ExpectRefused(two(4, 8), 9, "its tensors end at data byte 8, but the file holds 9 data bytes");
}

TEST(SafetensorsHeader, RefusesNamesBeyondTheLimit) {
  ExpectRefused("{\"" + std::string(5000, 'n') + "\":1}", 0, "a string of at most 1024 bytes");
}

// With the asan preset this is a small fuzzer; without, it still shows that nothing aborts.
TEST(SafetensorsHeader, SurvivesRandomMutations) {
  std::mt19937 random(7);
  const std::string original = kTwoTensors;
  constexpr std::string_view kBytes = "{}[]\",:\\u0129 \n\x00\xff-e.";
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string header = original;
    for (int edit = 0; edit <= static_cast<int>(random() % 3); ++edit) {
      const size_t place = random() % header.size();
      switch (random() % 4) {
        case 0:
          header[place] = kBytes[random() % kBytes.size()];
          break;
        case 1:
          header.erase(place, 1 + random() % 8);
          break;
        case 2:
          header.insert(place, 1, kBytes[random() % kBytes.size()]);
          break;
        default:
          header.insert(place, header.substr(random() % header.size(), random() % 20));
      }
    }
    refused += StatusOf(header, 32).ok() ? 0 : 1;
  }
  EXPECT_GT(refused, 10'000);
}

}  // namespace
}  // namespace zp::checkpoint
