#include "checkpoint/safetensors.h"

#include <cstring>

#include "checkpoint/testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::checkpoint {
namespace {

using testing::HasSubstr;

std::string FileText(uint64_t header_bytes, std::string_view rest) {
  std::string text(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  return text += rest;
}

// [2, 2] f32 numbers 1, 2, 3, 4 under the name "t"; `padding` spaces after the header.
std::string GoodFile(int padding) {
  std::string header = R"({"t":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
  header.append(padding, ' ');
  const float numbers[] = {1, 2, 3, 4};
  std::string text = FileText(header.size(), header);
  return text.append(reinterpret_cast<const char*>(numbers), sizeof(numbers));
}

class SafetensorsFileTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenText(const std::string& text) {
    WriteText(path_, text);
    return SafetensorsFile::Open(path_);
  }

  void ExpectRefused(const std::string& text, const std::string& message) {
    const absl::Status status = OpenText(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(base::MessageOf(status), HasSubstr(path_ + ": "));
    EXPECT_THAT(base::MessageOf(status), HasSubstr(message));
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_.File("x.safetensors");
};

TEST_F(SafetensorsFileTest, GivesViewsOfItsTensors) {
  const auto file = OpenText(GoodFile(7));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->Find("u"), nullptr);
  const TensorView* view = (*file)->Find("t");
  ASSERT_NE(view, nullptr);
  EXPECT_EQ(view->shape, (std::vector<int64_t>{2, 2}));
  ASSERT_EQ(view->bytes.size(), 16);
  EXPECT_EQ(reinterpret_cast<const float*>(view->bytes.data())[3], 4.0f);
  EXPECT_TRUE((*file)->Holds(view->bytes));
  (*file)->ReadAhead(view->bytes);
  ReleasePages(view->bytes);
  EXPECT_EQ(reinterpret_cast<const float*>(view->bytes.data())[0], 1.0f);
}

TEST_F(SafetensorsFileTest, RefusesEveryTruncation) {
  const std::string whole = GoodFile(7);
  for (size_t size = 0; size < whole.size(); ++size) {
    const absl::Status status = OpenText(whole.substr(0, size)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(base::MessageOf(status), HasSubstr(path_)) << size;
  }
  ExpectRefused("", "this file has 0 bytes");
  ExpectRefused(whole.substr(0, 20), "only 12 bytes follow: the file is truncated");
  ExpectRefused(whole.substr(0, whole.size() - 1),
                "tensor 't': its bytes 0 to 16 reach beyond the 15 data bytes of the file");
}

TEST_F(SafetensorsFileTest, RefusesAHugeHeader) {
  ExpectRefused(FileText(uint64_t{1} << 60, "{}"), "the limit is 67108864");
  ExpectRefused(FileText(UINT64_MAX, "{}"), "the limit is 67108864");
}

TEST_F(SafetensorsFileTest, RefusesNumbersThatAreNotAligned) {
  ExpectRefused(GoodFile(6), "which is no multiple of the 4 bytes of a f32 number");
}

TEST_F(SafetensorsFileTest, SaysThatAFileIsMissing) {
  const absl::Status status = SafetensorsFile::Open(directory_.File("none")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("none: cannot open: No such file"));
}

TEST_F(SafetensorsFileTest, RefusesAFolder) {
  EXPECT_THAT(base::MessageOf(SafetensorsFile::Open(directory_.path()).status()),
              HasSubstr("is not a regular file"));
}

}  // namespace
}  // namespace zp::checkpoint
