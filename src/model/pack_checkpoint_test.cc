#include "model/pack_checkpoint.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>

#include "base/bfloat16.h"
#include "base/checksum.h"
#include "checkpoint/fp8_testing.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/synthetic.h"
#include "checkpoint/tensor_table.h"
#include "checkpoint/testing.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory/buffer.h"
#include "model/expert_blob.h"
#include "ops/cpu/cpu_kernels.h"
#include "ops/reference/reference_kernels.h"

namespace zp::model {
namespace {

namespace fs = std::filesystem;
using checkpoint::Checkpoint;
using checkpoint::PackedExperts;
using checkpoint::ReadText;
using checkpoint::TinySpec;
using checkpoint::WriteText;
using testing::AllOf;
using testing::HasSubstr;

// A run on one thread reports the dense tensors, the 5 experts of layer 0, then those of layer 2.
constexpr int kDenseReports = 32;
constexpr int kReportsOfLayer0 = kDenseReports + 5;
constexpr int kAllReports = kReportsOfLayer0 + 5;

void Ignore(const PackProgress&) {}

std::map<std::string, std::string> FilesOf(const std::string& directory) {
  std::map<std::string, std::string> text_by_name;
  for (const auto& entry : fs::directory_iterator(directory)) {
    text_by_name[entry.path().filename().string()] = ReadText(entry.path().string());
  }
  return text_by_name;
}

// A small checkpoint on disk, layer 1 without experts, and a place to pack it to.
class PackCheckpointTest : public testing::Test {
 protected:
  void SetUp() override { WriteModel(/*seed=*/1); }

  void WriteModel(uint64_t seed) {
    fs::remove_all(model_);
    ASSERT_TRUE(checkpoint::WriteSynthetic(TinySpec(), seed, model_, [](int64_t, int64_t) {}).ok());
  }

  std::unique_ptr<Checkpoint> OpenModel() const {
    auto checkpoint = Checkpoint::Open(model_);
    ZP_CHECK(checkpoint.ok()) << checkpoint.status();
    return *std::move(checkpoint);
  }

  absl::Status Pack(const ops::Kernels& kernels, const std::string& directory) {
    return PackCheckpoint(*OpenModel(), kernels, pool_, directory, Ignore).status();
  }

  // Packs in a process of its own that dies at the `kill_at`-th report, or lives to the end.
  void PackAndDie(const std::string& directory, int kill_at) const {
    const pid_t child = fork();
    ZP_CHECK(child >= 0) << "fork";
    if (child == 0) {
      base::ThreadPool alone(1);
      int reports = 0;
      const auto report = [&](const PackProgress&) {
        if (++reports == kill_at) {
          std::_Exit(0);
        }
      };
      const auto result = PackCheckpoint(*OpenModel(), *reference_, alone, directory, report);
      std::_Exit(result.ok() ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  }

  std::unique_ptr<ops::Kernels> CpuKernels(spec::DType dtype, base::ThreadPool& pool) const {
    auto kernels = ops::cpu::CreateKernels(dtype, pool);
    ZP_CHECK(kernels.ok()) << kernels.status();
    return *std::move(kernels);
  }

  void ExpectEqualBlobs(const PackedExperts& packed, const ops::Kernels& kernels) {
    const std::unique_ptr<Checkpoint> checkpoint = OpenModel();
    const memory::Buffer blob(packed.expert_bytes, "test");
    for (const int32_t layer : {0, 2}) {
      const std::string file = ReadText(packed.layers[layer].path);
      ASSERT_EQ(file.size(), packed.expert_count * packed.expert_bytes);
      for (int32_t expert = 0; expert < packed.expert_count; ++expert) {
        ASSERT_TRUE(PackExpertBlob(*checkpoint, kernels, layer, expert, blob.bytes()).ok());
        const std::string_view expected(blob.as<char>(), blob.size_bytes());
        ASSERT_EQ(std::string_view(file).substr(expert * expected.size(), expected.size()),
                  expected);
        EXPECT_EQ(packed.layers[layer].checksums[expert], base::Checksum(blob.bytes()));
      }
    }
  }

  const checkpoint::TemporaryDirectory directory_;
  const std::string model_ = directory_.File("model");
  const std::string packed_ = directory_.File("packed");
  base::ThreadPool pool_{3};
  const std::unique_ptr<ops::Kernels> reference_ = ops::reference::CreateKernels();
};

TEST_F(PackCheckpointTest, WritesTheBlobsThatTheKernelsRead) {
  for (const spec::DType dtype : {spec::DType::kBf16, spec::DType::kF32}) {
    const std::string directory = packed_ + std::string(NameOf(dtype));
    const std::unique_ptr<ops::Kernels> kernels = CpuKernels(dtype, pool_);
    ASSERT_TRUE(Pack(*kernels, directory).ok());
    const auto packed = checkpoint::ReadPackedExperts(directory, TinySpec());
    ASSERT_TRUE(packed.ok()) << packed.status();
    EXPECT_EQ(packed->layout, kernels->layout_name());
    EXPECT_TRUE(packed->layers[1].path.empty());
    EXPECT_TRUE(CheckPackedLayout(*packed, TinySpec(), *kernels).ok());
    ExpectEqualBlobs(*packed, *kernels);
  }
}

TEST_F(PackCheckpointTest, WritesTheSameBytesOnAnyNumberOfThreads) {
  base::ThreadPool alone(1);
  ASSERT_TRUE(Pack(*CpuKernels(spec::DType::kBf16, pool_), packed_).ok());
  ASSERT_TRUE(PackCheckpoint(*OpenModel(),
                             *CpuKernels(spec::DType::kBf16, alone),
                             alone,
                             directory_.File("alone"),
                             Ignore)
                  .ok());
  EXPECT_EQ(FilesOf(packed_), FilesOf(directory_.File("alone")));
}

TEST_F(PackCheckpointTest, LeavesADirectoryThatOpensAsTheSameModel) {
  WriteText(model_ + "/tasks.json", "{\"a\": 1}");
  WriteText(model_ + "/.hidden", "x");
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  const std::unique_ptr<Checkpoint> original = OpenModel();
  const auto opened = Checkpoint::Open(packed_);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_FALSE((*opened)->has_expert_tensors());
  for (const auto& [role, layer, expert] : checkpoint::TensorKeys(TinySpec())) {
    if (expert < 0) {
      const checkpoint::TensorView& view = (*opened)->Tensor(role, layer);
      EXPECT_EQ(view.shape, original->Tensor(role, layer).shape);
      EXPECT_TRUE(std::ranges::equal(view.bytes, original->Tensor(role, layer).bytes));
    }
  }
  const auto files = FilesOf(packed_);
  std::vector<std::string> names;
  for (const auto& [name, text] : files) {
    names.push_back(name);
  }
  EXPECT_THAT(names,
              testing::ElementsAre("config.json",
                                   "experts-00000.bin",
                                   "experts-00002.bin",
                                   "experts.json",
                                   "model.safetensors",
                                   "tasks.json",
                                   "tokenizer.json",
                                   "tokenizer_config.json"));
  for (const char* name : {"config.json", "tasks.json", "tokenizer.json"}) {
    EXPECT_EQ(files.at(name), ReadText(model_ + "/" + name));
  }
}

// Norms in f32, the rest in bf16, with odd sizes: in the order of the model some norms would lie
// between the words.
TEST_F(PackCheckpointTest, KeepsNumbersOfMixedWidthsAligned) {
  spec::ModelSpec spec = TinySpec();
  spec.model_dim = 15;
  const auto narrow = checkpoint::CreateSynthetic(spec, 1);
  spec.weight_dtype = spec::DType::kF32;
  const auto wide = checkpoint::CreateSynthetic(spec, 1);
  const std::unique_ptr<Checkpoint> names = OpenModel();
  std::vector<checkpoint::TensorOutline> outlines;
  std::string data;
  for (const bool is_norm : {true, false}) {
    const Checkpoint& source = is_norm ? *wide : *narrow;
    for (const auto& [role, layer, expert] : checkpoint::TensorKeys(spec)) {
      const checkpoint::TensorView& view = source.Tensor(role, layer, expert);
      if ((view.shape.size() == 1) == is_norm) {
        outlines.push_back({names->TensorName(role, layer, expert), view.dtype, view.shape});
        data.append(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
      }
    }
  }
  ASSERT_TRUE(
      checkpoint::WriteSynthetic(spec, 1, directory_.File("wide"), [](int64_t, int64_t) {}).ok());
  const std::string config = ReadText(directory_.File("wide/config.json"));
  fs::remove_all(model_);
  fs::create_directory(model_);
  WriteText(model_ + "/model.safetensors", checkpoint::SafetensorsHeader(outlines) + data);
  WriteText(model_ + "/config.json", config);
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  const auto opened = Checkpoint::Open(packed_);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->Tensor(checkpoint::TensorRole::kFinalNorm).dtype, spec::DType::kF32);
  EXPECT_TRUE(std::ranges::equal((*opened)->Tensor(checkpoint::TensorRole::kRouter, 2).bytes,
                                 narrow->Tensor(checkpoint::TensorRole::kRouter, 2).bytes));
}

constexpr spec::Fp8Blocks kTestBlocks = {checkpoint::kTestBlockRows, checkpoint::kTestBlockCols};

// Makes experts of one layer from what the judge says: all rows through all experts of the packed
// blobs give, to the bit, what they give of the widened weights.
void ExpectFfnOfJudgedWeights(const checkpoint::Fp8Model& model,
                              const PackedExperts& packed,
                              ops::Kernels& kernels) {
  const auto [h, i] = std::pair(TinySpec().model_dim, TinySpec().expert_dim);
  const ops::ExpertLayout wide_layout = kernels.expert_layout(h, i);
  const std::string file = ReadText(packed.layers[2].path);
  const memory::Buffer blobs(file.size(), "test");
  std::memcpy(blobs.data(), file.data(), file.size());
  std::vector<memory::Buffer> wide_buffers;
  std::vector<const std::byte*> wide_blobs;
  std::vector<const std::byte*> fp8_blobs;
  for (int32_t expert = 0; expert < packed.expert_count; ++expert) {
    const auto judge = [&](const char* part) {
      return model.Judge(fmt::format("model.layers.2.mlp.experts.{}.{}_proj.weight", expert, part));
    };
    const auto matrix = [](const std::vector<float>& values, int64_t rows, int64_t cols) {
      return ops::ConstMatrix{
          reinterpret_cast<const std::byte*>(values.data()), spec::DType::kF32, rows, cols, cols};
    };
    const std::vector<float> gate = judge("gate");
    const std::vector<float> up = judge("up");
    const std::vector<float> down = judge("down");
    wide_buffers.emplace_back(wide_layout.bytes, "test");
    kernels.PackExpert(
        matrix(gate, i, h), matrix(up, i, h), matrix(down, h, i), wide_buffers.back().bytes());
    wide_blobs.push_back(wide_buffers.back().data());
    fp8_blobs.push_back(blobs.data() + expert * packed.expert_bytes);
  }
  constexpr int64_t kRows = 50;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x_values(kRows * h);
  std::ranges::generate(x_values, [&] { return normal(random); });
  std::vector<base::BFloat16> narrow_values(x_values.begin(), x_values.end());
  const ops::ConstMatrix x = {kernels.activation_dtype() == spec::DType::kF32
                                  ? reinterpret_cast<const std::byte*>(x_values.data())
                                  : reinterpret_cast<const std::byte*>(narrow_values.data()),
                              kernels.activation_dtype(),
                              kRows,
                              h,
                              h};
  std::vector<int32_t> ids(kRows);
  std::vector<float> weights(kRows, 1.0f);
  std::ranges::generate(ids, [&] { return static_cast<int32_t>(random() % 5); });
  const auto run = [&](const ops::ExpertLayout& layout, const std::vector<const std::byte*>& bank) {
    std::vector<float> residual(kRows * h);
    kernels.ExpertFfn(
        x,
        {ids, weights, 1},
        {layout, bank},
        {reinterpret_cast<std::byte*>(residual.data()), spec::DType::kF32, kRows, h, h});
    return residual;
  };
  EXPECT_EQ(run(kernels.expert_layout(h, i, kTestBlocks), fp8_blobs), run(wide_layout, wide_blobs));
}

TEST_F(PackCheckpointTest, Keeps8BitExpertsWhichStandForTheSameNumbers) {
  fs::remove_all(model_);
  const checkpoint::Fp8Model model(model_);
  for (const std::string name : {"bf16", "f32", "reference"}) {
    const std::unique_ptr<ops::Kernels> kernels =
        name == "reference"
            ? ops::reference::CreateKernels()
            : CpuKernels(name == "bf16" ? spec::DType::kBf16 : spec::DType::kF32, pool_);
    const std::string directory = packed_ + name;
    ASSERT_TRUE(Pack(*kernels, directory).ok());
    const auto opened = Checkpoint::Open(directory);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ((*opened)->DTypeOf(checkpoint::TensorRole::kQuery, 0), spec::DType::kF32);
    EXPECT_EQ((*opened)->expert_fp8_blocks(), std::nullopt);
    const auto packed = checkpoint::ReadPackedExperts(directory, TinySpec());
    ASSERT_TRUE(packed.ok()) << packed.status();
    EXPECT_EQ(packed->fp8_blocks, kTestBlocks);
    EXPECT_EQ(packed->layout, kernels->layout_name(kTestBlocks));
    EXPECT_TRUE(CheckPackedLayout(*packed, TinySpec(), *kernels).ok());
    ExpectFfnOfJudgedWeights(model, *packed, *kernels);
  }
}

TEST_F(PackCheckpointTest, WidensExpertsOfWhichOneIsWide) {
  fs::remove_all(model_);
  checkpoint::Fp8Model model(model_);
  const std::string name = "model.layers.0.mlp.experts.1.down_proj.weight";
  model.Remove(name + "_scale_inv");
  model.Add(name, "BF16", {20, 12}, std::vector<std::byte>(2 * 20 * 12));
  model.Write();
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  const auto packed = checkpoint::ReadPackedExperts(packed_, TinySpec());
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ(packed->fp8_blocks, std::nullopt);
  ExpectEqualBlobs(*packed, *reference_);
}

TEST_F(PackCheckpointTest, Keeps8BitExpertsWhereverItWasKilled) {
  fs::remove_all(model_);
  const checkpoint::Fp8Model model(model_);
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  for (const int kill_at : {kDenseReports + 1, kReportsOfLayer0 + 2}) {
    const std::string directory = directory_.File("killed" + std::to_string(kill_at));
    PackAndDie(directory, kill_at);
    ASSERT_TRUE(Pack(*reference_, directory).ok());
    EXPECT_EQ(FilesOf(directory), FilesOf(packed_)) << kill_at;
  }
}

// As a version that widened all experts left it.
TEST_F(PackCheckpointTest, DoesNotGoOnIn8BitsWithWhatWasBegunWide) {
  PackAndDie(packed_, kReportsOfLayer0 + 2);
  fs::remove_all(model_);
  const checkpoint::Fp8Model model(model_);
  const absl::Status status = Pack(*reference_, packed_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(base::MessageOf(status),
              AllOf(HasSubstr("unfinished packing with layout 'row-major f32'"),
                    HasSubstr("'row-major fp8 in blocks of 8 x 6'")));
}

TEST_F(PackCheckpointTest, Names8BitTensorsThatAreNotFinite) {
  const std::string name = "model.layers.2.mlp.experts.3.up_proj.weight";
  const std::vector<int64_t> shape = {12, 20};
  fs::remove_all(model_);
  checkpoint::Fp8Model model(model_);
  const auto expect_refused = [&](const std::string& element) {
    model.Write();
    const std::string directory = directory_.File("refused " + element);
    const absl::Status status = Pack(*reference_, directory);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(base::MessageOf(status), AllOf(HasSubstr(name), HasSubstr(element)));
    EXPECT_FALSE(checkpoint::IsPacked(directory));
  };
  for (const int nan : {0x7f, 0xff}) {
    std::vector<std::byte> numbers(12 * 20);
    numbers[87] = static_cast<std::byte>(nan);
    model.Add(name, "F8_E4M3", shape, numbers);
    expect_refused("element 87 is");
    fs::remove_all(directory_.File("refused element 87 is"));
  }
  std::vector<std::byte> numbers(12 * 20);
  numbers[13] = static_cast<std::byte>(0xfe);
  model.Add(name, "F8_E4M3", shape, numbers);
  std::vector<float> scales(2 * 4, 1.0f);
  scales[2] = 1e38f;
  const auto bytes = std::as_bytes(std::span(scales));
  model.Add(name + "_scale_inv", "F32", {2, 4}, {bytes.begin(), bytes.end()});
  expect_refused("element 13 is -inf, not a finite number");
}

TEST_F(PackCheckpointTest, ReportsEveryByte) {
  PackProgress last;
  const auto result =
      PackCheckpoint(*OpenModel(), *reference_, pool_, packed_, [&](const auto& now) {
        EXPECT_GE(now.written_bytes, last.written_bytes);
        last = now;
      });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(last.written_bytes, 0);
  EXPECT_EQ(result->written_bytes, result->total_bytes);
}

TEST_F(PackCheckpointTest, GoesOnWhereverItWasKilled) {
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  const auto expected = FilesOf(packed_);
  for (const int kill_at :
       {1, kDenseReports, kDenseReports + 1, kReportsOfLayer0, kReportsOfLayer0 + 1, kAllReports}) {
    const std::string directory = directory_.File("killed" + std::to_string(kill_at));
    PackAndDie(directory, kill_at);
    EXPECT_EQ(Checkpoint::Open(directory).status().code(), absl::StatusCode::kFailedPrecondition);
    ASSERT_TRUE(Pack(*reference_, directory).ok());
    EXPECT_EQ(FilesOf(directory), expected) << kill_at;
  }
}

TEST_F(PackCheckpointTest, TakesOverTheLayersThatWereFinished) {
  PackAndDie(packed_, kReportsOfLayer0 + 2);
  const auto time = fs::last_write_time(packed_ + "/experts-00000.bin");
  EXPECT_TRUE(fs::exists(packed_ + "/experts-00002.bin.partial"));
  const auto result = PackCheckpoint(*OpenModel(), *reference_, pool_, packed_, Ignore);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(fs::last_write_time(packed_ + "/experts-00000.bin"), time);
  EXPECT_EQ(result->written_bytes, fs::file_size(packed_ + "/experts-00002.bin"));
}

TEST_F(PackCheckpointTest, DoesNotTrustALayerThatTheIndexDoesNotName) {
  PackAndDie(packed_, kReportsOfLayer0 + 2);
  WriteText(packed_ + "/experts-00002.bin", "left by a run that was killed right after the rename");
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  const auto packed = checkpoint::ReadPackedExperts(packed_, TinySpec());
  ASSERT_TRUE(packed.ok()) << packed.status();
  ExpectEqualBlobs(*packed, *reference_);
}

TEST_F(PackCheckpointTest, NeverMixesTwoLayouts) {
  PackAndDie(packed_, kReportsOfLayer0 + 2);
  const absl::Status status = Pack(*CpuKernels(spec::DType::kF32, pool_), packed_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(base::MessageOf(status),
              AllOf(HasSubstr(packed_), HasSubstr("layout 'row-major f32'"), HasSubstr("cpu/f32")));
}

TEST_F(PackCheckpointTest, NeverMixesTwoCheckpoints) {
  PackAndDie(packed_, kReportsOfLayer0 + 2);
  WriteModel(/*seed=*/2);
  const absl::Status status = Pack(*reference_, packed_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("unfinished packing of another checkpoint"));
}

TEST_F(PackCheckpointTest, NamesALayerThatWasCutOffSince) {
  PackAndDie(packed_, kReportsOfLayer0 + 2);
  fs::resize_file(packed_ + "/experts-00000.bin", 4096);
  EXPECT_THAT(base::MessageOf(Pack(*reference_, packed_)),
              HasSubstr("experts-00000.bin: has 4096 bytes, but 5 experts of"));
}

TEST_F(PackCheckpointTest, RefusesADirectoryThatHoldsSomethingElse) {
  fs::create_directory(packed_);
  WriteText(packed_ + "/thesis.txt", "x");
  absl::Status status = Pack(*reference_, packed_);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("holds 'thesis.txt'"));
  EXPECT_EQ(Pack(*reference_, model_).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(FilesOf(packed_).size(), 1);

  fs::remove(packed_ + "/thesis.txt");
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  status = Pack(*reference_, packed_);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("holds a packed model"));
}

TEST_F(PackCheckpointTest, RefusesACheckpointThatIsPacked) {
  ASSERT_TRUE(Pack(*reference_, packed_).ok());
  const auto packed = Checkpoint::Open(packed_);
  ASSERT_TRUE(packed.ok()) << packed.status();
  const absl::Status status =
      PackCheckpoint(**packed, *reference_, pool_, directory_.File("twice"), Ignore).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("is packed already"));
}

TEST_F(PackCheckpointTest, LetsOneRunAtATimeWrite) {
  fs::create_directory(packed_);
  const int other_run = open(packed_.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(flock(other_run, LOCK_EX), 0);
  EXPECT_EQ(Pack(*reference_, packed_).code(), absl::StatusCode::kUnavailable);
  close(other_run);
  EXPECT_TRUE(Pack(*reference_, packed_).ok());
}

TEST_F(PackCheckpointTest, NamesATensorThatIsNotFinite) {
  const std::string shard = model_ + "/model-00001-of-00001.safetensors";
  std::string text = ReadText(shard);
  const auto checkpoint = OpenModel();
  const auto& view = checkpoint->Tensor(checkpoint::TensorRole::kExpertUp, 2, 3);
  const size_t place =
      text.find(std::string_view(reinterpret_cast<const char*>(view.bytes.data()), 64));
  ASSERT_NE(place, std::string::npos);
  WriteText(shard, text.replace(place, 2, "\xc0\x7f"));
  EXPECT_THAT(base::MessageOf(Pack(*reference_, packed_)),
              AllOf(HasSubstr("model.layers.2.mlp.experts.3.up_proj.weight"),
                    HasSubstr("not a finite number")));
  EXPECT_FALSE(checkpoint::IsPacked(packed_));
}

// The small model's files under a spec of 10^17 bytes.
class VastCheckpoint final : public Checkpoint {
 public:
  explicit VastCheckpoint(std::string directory) : directory_(std::move(directory)) {
    spec_.expert_count = 4096;
    spec_.expert_dim = 1 << 20;
    spec_.model_dim = 1 << 17;
    view_.shape = {1};
  }
  const spec::ModelSpec& spec() const override { return spec_; }
  const std::string& directory() const override { return directory_; }
  const checkpoint::TensorView& Tensor(checkpoint::TensorRole, int32_t, int32_t) const override {
    return view_;
  }
  spec::DType DTypeOf(checkpoint::TensorRole, int32_t, int32_t) const override {
    return view_.dtype;
  }
  std::optional<spec::Fp8Blocks> expert_fp8_blocks() const override { return std::nullopt; }
  checkpoint::Fp8Copy ReadFp8(checkpoint::TensorRole, int32_t, int32_t) const override {
    return {};
  }
  std::string TensorName(checkpoint::TensorRole, int32_t, int32_t) const override { return "x"; }
  void Release(const checkpoint::TensorView&) const override {}

 private:
  spec::ModelSpec spec_ = TinySpec();
  const std::string directory_;
  checkpoint::TensorView view_;
};

TEST_F(PackCheckpointTest, RefusesAModelLargerThanTheDisk) {
  const absl::Status status =
      PackCheckpoint(VastCheckpoint(model_), *reference_, pool_, packed_, Ignore).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(base::MessageOf(status), HasSubstr("but the disk has"));
  EXPECT_TRUE(fs::is_empty(packed_));
}

}  // namespace
}  // namespace zp::model
