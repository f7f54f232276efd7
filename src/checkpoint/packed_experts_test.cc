#include "checkpoint/packed_experts.h"

#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>

#include "checkpoint/model_files.h"
#include "checkpoint/testing.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// The index of a small packed directory, for each test to break in its own way. Blobs are holes.
class PackedExpertsTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const int32_t layer : {0, 2}) {
      experts_.layers[layer].path = directory_.File(PackedFileName(layer));
      experts_.layers[layer].checksums = {1, 2, 0, std::numeric_limits<uint64_t>::max(), 0xabc};
      WriteText(experts_.layers[layer].path, "");
      fs::resize_file(experts_.layers[layer].path, 5 * 8192);
    }
    const absl::Status status = WritePackedExperts(experts_);
    ASSERT_TRUE(status.ok()) << status;
  }

  absl::Status ReadStatus() const {
    return ReadPackedExperts(directory_.path(), TinySpec()).status();
  }

  void ExpectError(absl::StatusCode code, const std::string& message) const {
    const absl::Status status = ReadStatus();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(base::MessageOf(status), HasSubstr(message));
  }

  // Puts `to` in the place of `from` in the index, reads it, and restores it.
  void ExpectEditRefused(std::string_view from, std::string_view to, const std::string& message) {
    const std::string text = ReadText(index_);
    EditText(index_, from, to);
    ExpectError(absl::StatusCode::kInvalidArgument, message);
    WriteText(index_, text);
  }

  const TemporaryDirectory directory_;
  const std::string index_ = directory_.File("experts.json");
  PackedExperts experts_ = {.directory = directory_.path(),
                            .layout = "rows of \"apples\"",
                            .expert_count = 5,
                            .expert_bytes = 8192,
                            .gate_up_offset = 0,
                            .down_offset = 4160,
                            .layers = std::vector<PackedLayer>(3)};
};

TEST_F(PackedExpertsTest, ReadsBackWhatWasWritten) {
  EXPECT_TRUE(IsPacked(directory_.path()));
  EXPECT_FALSE(IsPackingUnfinished(directory_.path()));
  const auto read = ReadPackedExperts(directory_.path(), TinySpec());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->directory, experts_.directory);
  EXPECT_EQ(read->layout, experts_.layout);
  EXPECT_EQ(read->expert_count, experts_.expert_count);
  EXPECT_EQ(read->expert_bytes, experts_.expert_bytes);
  EXPECT_EQ(read->gate_up_offset, experts_.gate_up_offset);
  EXPECT_EQ(read->down_offset, experts_.down_offset);
  ASSERT_EQ(read->layers.size(), 3);
  EXPECT_TRUE(read->layers[1].path.empty());
  for (const int32_t layer : {0, 2}) {
    EXPECT_EQ(read->layers[layer].path, experts_.layers[layer].path);
    EXPECT_EQ(read->layers[layer].checksums, experts_.layers[layer].checksums);
  }
}

TEST_F(PackedExpertsTest, ReadsAnUnfinishedPacking) {
  fs::remove(index_);
  fs::remove(experts_.layers[2].path);
  experts_.layers[2] = {};
  ASSERT_TRUE(WriteUnfinishedPacking({.source = "0123", .experts = experts_}).ok());
  EXPECT_FALSE(IsPacked(directory_.path()));
  EXPECT_TRUE(IsPackingUnfinished(directory_.path()));
  const auto read = ReadUnfinishedPacking(directory_.path(), TinySpec());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->source, "0123");
  EXPECT_EQ(read->experts.layers[0].checksums, experts_.layers[0].checksums);
  EXPECT_TRUE(read->experts.layers[2].path.empty());
}

TEST_F(PackedExpertsTest, RemovesTheUnfinishedIndexAtTheEnd) {
  ASSERT_TRUE(WriteUnfinishedPacking({.source = "0123", .experts = experts_}).ok());
  EXPECT_FALSE(IsPackingUnfinished(directory_.path()));  // there is a finished one as well
  ASSERT_TRUE(WritePackedExperts(experts_).ok());
  EXPECT_FALSE(fs::exists(directory_.File("experts.json.partial")));
}

TEST_F(PackedExpertsTest, NamesTheFieldThatIsWrong) {
  ExpectEditRefused("\"format\":\"zero", "\"format\":\"nil", "field 'format' is 'nilprefill");
  ExpectEditRefused("\"layout\":", "\"lay\":", "field 'layout' is missing");
  ExpectEditRefused("\"expert_count\":5",
                    "\"expert_count\":6",
                    "field 'expert_count' is 6, but config.json promises 5");
  ExpectEditRefused("\"expert_bytes\":8192",
                    "\"expert_bytes\":8000",
                    "field 'expert_bytes' is 8000, but must be a multiple of 4096");
  ExpectEditRefused("\"expert_bytes\":8192", "\"expert_bytes\":-4096", "field 'expert_bytes'");
  ExpectEditRefused(
      "\"gate_up_offset\":0", "\"gate_up_offset\":8192", "field 'gate_up_offset' must be");
  ExpectEditRefused("\"down_offset\":4160",
                    "\"down_offset\":4161",
                    "field 'down_offset' is 4161, but must be a multiple of 64");
}

TEST_F(PackedExpertsTest, NamesTheLayerThatIsWrong) {
  ExpectEditRefused("\"layers\":", "\"lay\":", "field 'layers.0' is missing");
  ExpectEditRefused("\"2\":", "\"3\":", "field 'layers.2' is missing");
  ExpectEditRefused(
      "\"2\":", "\"1\":{},\"2\":", "field 'layers' has 3 entries, but 2 of them are layers");
  ExpectEditRefused(
      "{\"file\":\"experts-00002.bin\"", "{\"f\":1", "field 'layers.2.file' is missing");
  ExpectEditRefused("experts-00002.bin", "../experts", "which is no plain file name");
  ExpectEditRefused("experts-00002.bin", "experts-00000.bin", "as another layer does");
}

TEST_F(PackedExpertsTest, NamesTheChecksumThatIsWrong) {
  ExpectEditRefused("\"0000000000000abc\"", "\"abc\"", "has 'abc' for expert 4, but must have 16");
  ExpectEditRefused("0000000000000abc", "000000000000-abc", "for expert 4");
  ExpectEditRefused(",\"0000000000000abc\"", "", "has 4 elements, but there are 5 experts");
}

TEST_F(PackedExpertsTest, SaysThatAnotherVersionIsNotRead) {
  EditText(index_, "\"version\":1", "\"version\":3");
  ExpectError(absl::StatusCode::kUnimplemented,
              "field 'version' is 3, but this program reads versions 1 and 2");
}

TEST_F(PackedExpertsTest, ReadsBackExpertsIn8Bits) {
  experts_.fp8_blocks = spec::Fp8Blocks{128, 64};
  experts_.scales_offset = 7936;
  ASSERT_TRUE(WritePackedExperts(experts_).ok());
  EXPECT_THAT(ReadText(index_), HasSubstr("\"version\":2"));
  const auto read = ReadPackedExperts(directory_.path(), TinySpec());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->fp8_blocks, experts_.fp8_blocks);
  EXPECT_EQ(read->scales_offset, 7936);
  EXPECT_EQ(read->layers[2].checksums, experts_.layers[2].checksums);
}

TEST_F(PackedExpertsTest, NamesTheFieldOf8BitExpertsThatIsWrong) {
  ExpectEditRefused("\"version\":1", "\"version\":2", "field 'fp8_block_size' is missing");
  experts_.fp8_blocks = spec::Fp8Blocks{128, 64};
  experts_.scales_offset = 7936;
  ASSERT_TRUE(WritePackedExperts(experts_).ok());
  ExpectEditRefused("\"version\":2",
                    "\"version\":1",
                    "field 'fp8_block_size' is there, but experts have 8-bit numbers in version 2");
  ExpectEditRefused("[128,64]", "[128]", "field 'fp8_block_size' has 1 numbers, but must have 2");
  ExpectEditRefused("[128,64]", "[128,0]", "field 'fp8_block_size'");
  ExpectEditRefused("[128,64]", "[128,1e9]", "field 'fp8_block_size'");
  ExpectEditRefused("\"scales_offset\":", "\"scale_offset\":", "field 'scales_offset' is missing");
  ExpectEditRefused("\"scales_offset\":7936",
                    "\"scales_offset\":7937",
                    "field 'scales_offset' is 7937, but must be a multiple of 64");
  ExpectEditRefused("\"scales_offset\":7936", "\"scales_offset\":8192", "field 'scales_offset'");
}

TEST_F(PackedExpertsTest, NamesAFileOfTheWrongSize) {
  fs::resize_file(experts_.layers[2].path, 5 * 8192 - 4096);
  ExpectError(absl::StatusCode::kInvalidArgument,
              "experts-00002.bin: has 36864 bytes, but 5 experts of 8192 bytes take 40960");
}

TEST_F(PackedExpertsTest, NamesAFileThatIsNotThere) {
  fs::remove(experts_.layers[0].path);
  ExpectError(absl::StatusCode::kNotFound, "experts-00000.bin: is no regular file");
  fs::create_directory(experts_.layers[0].path);
  ExpectError(absl::StatusCode::kNotFound, "experts-00000.bin: is no regular file");
}

TEST_F(PackedExpertsTest, TellsThatNoFileIsThere) {
  EXPECT_TRUE(ReadPackedExperts(directory_.path(), TinySpec())->has_files);
  fs::remove(experts_.layers[0].path);
  fs::remove(experts_.layers[2].path);
  const auto read = ReadPackedExperts(directory_.path(), TinySpec());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->has_files);
}

TEST_F(PackedExpertsTest, SurvivesRandomMutationsOfTheIndex) {
  const std::string original = ReadText(index_);
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::string text = original;
    for (int edit = 0; edit < 2; ++edit) {
      text[random() % text.size()] = static_cast<char>(random());
    }
    text.resize(random() % 4 == 0 ? random() % text.size() : text.size());
    WriteText(index_, text);
    const absl::Status status = ReadStatus();
    EXPECT_TRUE(status.ok() || !status.message().empty());
  }
}

TEST(ModelFiles, FingerprintChangesWithConfigAndWeightsOnly) {
  const TemporaryDirectory directory;
  const auto fingerprint = [&] {
    const auto result = Fingerprint(directory.path());
    EXPECT_TRUE(result.ok()) << result.status();
    return *result;
  };
  EXPECT_EQ(Fingerprint(directory.path()).status().code(), absl::StatusCode::kInvalidArgument);
  WriteText(directory.File("config.json"), "{}");
  WriteText(directory.File("model.safetensors"), "weights");
  const std::string first = fingerprint();
  WriteText(directory.File("README.md"), "other");
  EXPECT_EQ(fingerprint(), first);
  const auto time = fs::last_write_time(directory.File("model.safetensors"));
  fs::last_write_time(directory.File("model.safetensors"), time + std::chrono::nanoseconds(1000));
  const std::string touched = fingerprint();
  EXPECT_NE(touched, first);
  WriteText(directory.File("config.json"), "{\"a\":1}");
  EXPECT_NE(fingerprint(), touched);
}

TEST(ModelFiles, CopiesWhatIsSmallAndNoWeight) {
  const TemporaryDirectory from;
  const TemporaryDirectory to;
  WriteText(from.File("config.json"), "{}");
  WriteText(from.File(".secret"), "x");
  WriteText(from.File("model-00001-of-00002.safetensors"), "x");
  WriteText(from.File("model.safetensors.index.json"), "{}");
  WriteText(from.File("large"), "");
  fs::resize_file(from.File("large"), (64 << 20) + 1);
  fs::create_directory(from.File("folder"));
  fs::create_symlink(from.File("config.json"), from.File("link.json"));
  ASSERT_TRUE(CopySmallFiles(from.path(), to.path()).ok());
  EXPECT_EQ(std::distance(fs::directory_iterator(to.path()), fs::directory_iterator()), 2);
  EXPECT_EQ(ReadText(to.File("config.json")), "{}");
  EXPECT_EQ(ReadText(to.File("link.json")), "{}");
  EXPECT_FALSE(fs::is_symlink(to.File("link.json")));
}

}  // namespace
}  // namespace zp::checkpoint
