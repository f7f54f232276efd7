// The CPU's operations against the reference, on fresh random inputs of odd shapes.
//
// Both get the same bf16 numbers. Tolerances are in units of the largest expected value: 1e-5 for
// f32 (sums of up to some thousand terms, 2^-24 each); for bf16 results 2^-8, twice the rounding of
// one store; for experts 2^-6, as their inner values are rounded too.
#include "ops/cpu/cpu_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/cpu/random_fp8.h"
#include "ops/cpu/random_matrix.h"
#include "ops/reference/reference_kernels.h"

namespace zp::ops::cpu {
namespace {

constexpr spec::DType kBf16 = spec::DType::kBf16;
constexpr spec::DType kF32 = spec::DType::kF32;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// How a CPU computes: in the way that suits it, or as any CPU without bf16 instructions does.
enum class Form { kBf16, kBf16AsF32, kF32 };

std::string NameOfForm(const testing::TestParamInfo<Form>& info) {
  constexpr std::array kNames = {"Bf16", "Bf16AsF32", "F32"};
  return kNames[static_cast<size_t>(info.param)];
}

double LargestMagnitude(const ConstMatrix& m) {
  double largest = 0;
  for (int64_t row = 0; row < m.rows; ++row) {
    for (int64_t col = 0; col < m.cols; ++col) {
      largest = std::max<double>(largest, std::fabs(LoadElement(m, row, col)));
    }
  }
  return largest;
}

void ExpectNear(const ConstMatrix& actual, const ConstMatrix& expected, double relative) {
  const double tolerance = relative * LargestMagnitude(expected);
  ASSERT_EQ(actual.rows, expected.rows);
  for (int64_t row = 0; row < expected.rows; ++row) {
    for (int64_t col = 0; col < expected.cols; ++col) {
      ASSERT_NEAR(LoadElement(actual, row, col), LoadElement(expected, row, col), tolerance)
          << row << ", " << col;
    }
  }
}

bool BitEqual(const ConstMatrix& a, const ConstMatrix& b) {
  const size_t row_bytes = static_cast<size_t>(a.cols) * spec::SizeOf(a.dtype);
  for (int64_t row = 0; row < a.rows; ++row) {
    if (std::memcmp(a.Rows(row, 1).data, b.Rows(row, 1).data, row_bytes) != 0) {
      return false;
    }
  }
  return true;
}

struct TestRouting {
  std::vector<int32_t> expert_ids;
  std::vector<float> expert_weights;
  Routing view;
};

TestRouting MakeRouting(int64_t rows, int64_t experts_per_token) {
  TestRouting routing{std::vector<int32_t>(rows * experts_per_token),
                      std::vector<float>(rows * experts_per_token),
                      {}};
  routing.view = {routing.expert_ids, routing.expert_weights, experts_per_token};
  return routing;
}

// Raw weights of a layer's experts.
struct TestExperts {
  std::vector<OwnedMatrix> gate, up, down;
};

TestExperts MakeExperts(std::mt19937& random, int64_t count, int64_t model_dim, int64_t dim) {
  TestExperts experts;
  const float scale = 1.0f / std::sqrt(static_cast<float>(model_dim));
  for (int64_t i = 0; i < count; ++i) {
    experts.gate.push_back(RandomMatrix(random, kBf16, dim, model_dim, scale));
    experts.up.push_back(RandomMatrix(random, kBf16, dim, model_dim, scale));
    experts.down.push_back(RandomMatrix(random, kBf16, model_dim, dim, scale));
  }
  return experts;
}

// The blobs of the experts that `routing` names; the others are null.
struct TestBank {
  std::vector<memory::Buffer> buffers;
  std::vector<const std::byte*> blobs;
  ExpertBank view;
};

TestBank PackBank(const Kernels& kernels, const TestExperts& experts, const Routing& routing) {
  TestBank bank;
  const Matrix& down = experts.down[0].view;
  bank.view.layout = kernels.expert_layout(down.rows, down.cols);
  for (size_t i = 0; i < experts.gate.size(); ++i) {
    const bool is_hit = std::count(routing.expert_ids.begin(), routing.expert_ids.end(), i) > 0;
    bank.buffers.emplace_back();
    if (is_hit) {
      bank.buffers.back() = memory::Buffer(bank.view.layout.bytes, "test");
      kernels.PackExpert(experts.gate[i].view,
                         experts.up[i].view,
                         experts.down[i].view,
                         bank.buffers.back().bytes());
    }
    bank.blobs.push_back(is_hit ? bank.buffers.back().data() : nullptr);
  }
  bank.view.blobs = bank.blobs;
  return bank;
}

// Raw weights of a layer's experts in 8 bits.
struct TestFp8Experts {
  std::vector<OwnedFp8> gate, up, down;
};

TestFp8Experts MakeFp8Experts(std::mt19937& random,
                              int64_t count,
                              int64_t model_dim,
                              int64_t dim,
                              const spec::Fp8Blocks& blocks) {
  TestFp8Experts experts;
  const float scale = 1.0f / std::sqrt(static_cast<float>(model_dim));
  for (int64_t i = 0; i < count; ++i) {
    experts.gate.push_back(RandomFp8(random, dim, model_dim, blocks, scale));
    experts.up.push_back(RandomFp8(random, dim, model_dim, blocks, scale));
    experts.down.push_back(RandomFp8(random, model_dim, dim, blocks, scale));
  }
  return experts;
}

TestExperts WidenedExperts(const TestFp8Experts& experts) {
  TestExperts wide;
  for (size_t i = 0; i < experts.gate.size(); ++i) {
    wide.gate.push_back(Widened(experts.gate[i]));
    wide.up.push_back(Widened(experts.up[i]));
    wide.down.push_back(Widened(experts.down[i]));
  }
  return wide;
}

TestBank PackFp8Bank(const Kernels& kernels,
                     const TestFp8Experts& experts,
                     const Routing& routing) {
  TestBank bank;
  const OwnedFp8& down = experts.down[0];
  bank.view.layout = kernels.expert_layout(down.rows, down.cols, down.blocks);
  for (size_t i = 0; i < experts.gate.size(); ++i) {
    const bool is_hit = std::count(routing.expert_ids.begin(), routing.expert_ids.end(), i) > 0;
    bank.buffers.emplace_back();
    if (is_hit) {
      bank.buffers.back() = memory::Buffer(bank.view.layout.bytes, "test");
      kernels.PackFp8Expert(experts.gate[i].view(),
                            experts.up[i].view(),
                            experts.down[i].view(),
                            bank.buffers.back().bytes());
    }
    bank.blobs.push_back(is_hit ? bank.buffers.back().data() : nullptr);
  }
  bank.view.blobs = bank.blobs;
  return bank;
}

class CpuKernelsTest : public testing::TestWithParam<Form> {
 protected:
  void SetUp() override {
    std::cout << "seed " << seed_ << "\n";
    kernels_ = Create(pool_);
    single_thread_kernels_ = Create(single_thread_);
  }

  std::unique_ptr<Kernels> Create(base::ThreadPool& pool) const {
    return GetParam() == Form::kBf16AsF32 ? CreateKernelsWithF32Products(kBf16, pool).value()
                                          : CreateKernels(dtype(), pool).value();
  }

  spec::DType dtype() const { return GetParam() == Form::kF32 ? kF32 : kBf16; }
  bool is_bf16() const { return dtype() == kBf16; }
  double tolerance(spec::DType stored) const { return stored == kBf16 ? 0x1p-8 : 1e-5; }

  OwnedMatrix Random(spec::DType dtype, int64_t rows, int64_t cols, float scale = 1.0f) {
    return RandomMatrix(random_, dtype, rows, cols, scale);
  }

  memory::Buffer Pack(const Kernels& kernels, const ConstMatrix& weight) const {
    memory::Buffer packed(kernels.packed_bytes(weight.rows, weight.cols), "test");
    kernels.Pack(weight, packed.bytes());
    return packed;
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  base::ThreadPool pool_{2};
  base::ThreadPool single_thread_{1};
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Kernels> single_thread_kernels_;
  std::unique_ptr<Kernels> reference_ = reference::CreateKernels();
};

TEST_P(CpuKernelsTest, MatMulEqualsReferenceAndDoesNotDependOnThreads) {
  for (const auto [rows, out_dim, in_dim] : {std::array<int64_t, 3>{1, 1000, 96},
                                             std::array<int64_t, 3>{300, 40, 960},
                                             std::array<int64_t, 3>{77, 333, 65}}) {
    const OwnedMatrix x = Random(dtype(), rows, in_dim);
    const OwnedMatrix wide_x = CopyAs(kF32, x.view);
    const OwnedMatrix weight = Random(kBf16, out_dim, in_dim);
    const memory::Buffer packed = Pack(*kernels_, weight.view);
    const memory::Buffer plain = Pack(*reference_, weight.view);
    const OwnedMatrix expected = MakeMatrix(kF32, rows, out_dim);
    reference_->MatMul(wide_x.view, {plain.data(), out_dim, in_dim}, expected.view);
    for (const spec::DType out_dtype : {dtype(), kF32}) {
      const OwnedMatrix y = MakeMatrix(out_dtype, rows, out_dim);
      kernels_->MatMul(x.view, {packed.data(), out_dim, in_dim}, y.view);
      ExpectNear(y.view, expected.view, tolerance(out_dtype));
      const OwnedMatrix again = MakeMatrix(out_dtype, rows, out_dim);
      single_thread_kernels_->MatMul(x.view, {packed.data(), out_dim, in_dim}, again.view);
      EXPECT_TRUE(BitEqual(y.view, again.view));
    }
  }
}

TEST_P(CpuKernelsTest, MatMulAddAddsInPlace) {
  const OwnedMatrix x = Random(dtype(), 50, 72);
  const OwnedMatrix weight = Random(kBf16, 90, 72);
  const OwnedMatrix y = Random(kF32, 50, 90);
  const OwnedMatrix expected = CopyAs(kF32, y.view);
  const memory::Buffer packed = Pack(*kernels_, weight.view);
  const memory::Buffer plain = Pack(*reference_, weight.view);
  reference_->MatMulAdd(CopyAs(kF32, x.view).view, {plain.data(), 90, 72}, expected.view);
  kernels_->MatMulAdd(x.view, {packed.data(), 90, 72}, y.view);
  ExpectNear(y.view, expected.view, 1e-5);
}

TEST_P(CpuKernelsTest, MatMulReadsAndWritesColumnsOfWiderMatrices) {
  const OwnedMatrix x = Random(dtype(), 20, 100);
  const OwnedMatrix weight = Random(kBf16, 30, 36);
  const OwnedMatrix y = Random(dtype(), 20, 80);
  const OwnedMatrix before = CopyAs(dtype(), y.view);
  const memory::Buffer packed = Pack(*kernels_, weight.view);
  const memory::Buffer plain = Pack(*reference_, weight.view);
  const OwnedMatrix expected = MakeMatrix(kF32, 20, 30);
  reference_->MatMul(
      CopyAs(kF32, x.view.Columns(11, 36)).view, {plain.data(), 30, 36}, expected.view);
  kernels_->MatMul(x.view.Columns(11, 36), {packed.data(), 30, 36}, y.view.Columns(7, 30));
  ExpectNear(y.view.Columns(7, 30), expected.view, tolerance(dtype()));
  EXPECT_TRUE(BitEqual(y.view.Columns(0, 7), before.view.Columns(0, 7)));
  EXPECT_TRUE(BitEqual(y.view.Columns(37, 43), before.view.Columns(37, 43)));
}

TEST_P(CpuKernelsTest, ExpertFfnEqualsReferenceAndLeavesMissingExpertsAlone) {
  constexpr int64_t kRows = 150;
  for (const auto [model_dim, expert_dim, expert_count, experts_per_token] :
       {std::array<int64_t, 4>{88, 40, 60, 4}, std::array<int64_t, 4>{128, 96, 16, 2}}) {
    const OwnedMatrix x = Random(dtype(), kRows, model_dim);
    const TestExperts experts = MakeExperts(random_, expert_count, model_dim, expert_dim);
    const TestRouting routing = MakeRouting(kRows, experts_per_token);
    const OwnedMatrix router_logits = Random(kF32, kRows, expert_count);
    for (int64_t row = 0; row < kRows; ++row) {
      router_logits.view.row<float>(row)[5] = -100;  // nobody chooses expert 5
    }
    kernels_->RouteExperts(router_logits.view, true, routing.view);
    const TestBank bank = PackBank(*kernels_, experts, routing.view);
    const TestBank plain = PackBank(*reference_, experts, routing.view);
    ASSERT_EQ(bank.blobs[5], nullptr);
    const OwnedMatrix residual = MakeMatrix(kF32, kRows, model_dim);
    const OwnedMatrix expected = MakeMatrix(kF32, kRows, model_dim);
    reference_->ExpertFfn(CopyAs(kF32, x.view).view, routing.view, plain.view, expected.view);
    kernels_->ExpertFfn(x.view, routing.view, bank.view, residual.view);
    ExpectNear(residual.view, expected.view, is_bf16() ? 0x1p-6 : 1e-5);
  }
}

// Against the reference, which reads 8 bits number by number, and bit for bit against the same
// weights widened before packing; on one thread or two, with few rows and with many blocks of them.
TEST_P(CpuKernelsTest, ExpertFfnIn8BitsEqualsTheReferenceAndTheWidenedWeightsToTheBit) {
  struct Case {
    int64_t rows, model_dim, expert_dim, expert_count, experts_per_token;
    spec::Fp8Blocks blocks;
  };
  for (const Case& c : {Case{150, 88, 40, 60, 4, {8, 6}},
                        Case{33, 65, 37, 5, 2, {128, 128}},
                        Case{40, 600, 300, 3, 1, {128, 128}},
                        Case{1500, 24, 48, 2, 2, {16, 5}}}) {
    const OwnedMatrix x = Random(dtype(), c.rows, c.model_dim);
    const TestFp8Experts experts =
        MakeFp8Experts(random_, c.expert_count, c.model_dim, c.expert_dim, c.blocks);
    const TestRouting routing = MakeRouting(c.rows, c.experts_per_token);
    kernels_->RouteExperts(Random(kF32, c.rows, c.expert_count).view, true, routing.view);
    const TestBank bank = PackFp8Bank(*kernels_, experts, routing.view);
    const TestBank plain = PackFp8Bank(*reference_, experts, routing.view);
    const TestBank wide = PackBank(*kernels_, WidenedExperts(experts), routing.view);
    const OwnedMatrix residual = MakeMatrix(kF32, c.rows, c.model_dim);
    const OwnedMatrix of_wide = MakeMatrix(kF32, c.rows, c.model_dim);
    const OwnedMatrix on_one_thread = MakeMatrix(kF32, c.rows, c.model_dim);
    kernels_->ExpertFfn(x.view, routing.view, bank.view, residual.view);
    kernels_->ExpertFfn(x.view, routing.view, wide.view, of_wide.view);
    single_thread_kernels_->ExpertFfn(x.view, routing.view, bank.view, on_one_thread.view);
    EXPECT_TRUE(BitEqual(residual.view, of_wide.view)) << c.model_dim;
    EXPECT_TRUE(BitEqual(residual.view, on_one_thread.view)) << c.model_dim;
    const int64_t judged = std::min<int64_t>(c.rows, 40);
    const OwnedMatrix expected = MakeMatrix(kF32, judged, c.model_dim);
    const Routing first = {routing.view.expert_ids.first(judged * c.experts_per_token),
                           routing.view.expert_weights.first(judged * c.experts_per_token),
                           c.experts_per_token};
    reference_->ExpertFfn(
        CopyAs(kF32, x.view.Rows(0, judged)).view, first, plain.view, expected.view);
    ExpectNear(residual.view.Rows(0, judged), expected.view, is_bf16() ? 0x1p-6 : 1e-5);
  }
}

TEST_P(CpuKernelsTest, ExpertsIn8BitsTakeAByteANumber) {
  const ExpertLayout wide = kernels_->expert_layout(2048, 768);
  const ExpertLayout narrow = kernels_->expert_layout(2048, 768, spec::Fp8Blocks{128, 128});
  EXPECT_LE(narrow.bytes, wide.bytes / (is_bf16() ? 2 : 4) + 4096);
  EXPECT_EQ(narrow.bytes % 4096, 0);
  EXPECT_NE(kernels_->layout_name(), kernels_->layout_name(spec::Fp8Blocks{128, 128}));
  EXPECT_NE(kernels_->layout_name(spec::Fp8Blocks{64, 128}),
            kernels_->layout_name(spec::Fp8Blocks{128, 64}));
}

TEST_P(CpuKernelsTest, ExpertFfnRowsAreBitEqualAloneAndInACrowd) {
  constexpr int64_t kRows = 400;
  constexpr int64_t kK = 3;
  const OwnedMatrix x = Random(dtype(), kRows, 104);
  const OwnedMatrix residual = Random(kF32, kRows, 104);
  const TestExperts experts = MakeExperts(random_, 7, 104, 72);
  const TestRouting routing = MakeRouting(kRows, kK);
  kernels_->RouteExperts(Random(kF32, kRows, 7).view, false, routing.view);
  const TestBank bank = PackBank(*kernels_, experts, routing.view);
  const OwnedMatrix all = CopyAs(kF32, residual.view);
  kernels_->ExpertFfn(x.view, routing.view, bank.view, all.view);
  std::uniform_int_distribution<int64_t> any_count(1, kRows);
  for (const int64_t count : {int64_t{1}, int64_t{7}, any_count(random_), kRows}) {
    const int64_t begin = std::uniform_int_distribution<int64_t>(0, kRows - count)(random_);
    const Routing part = {routing.view.expert_ids.subspan(begin * kK, count * kK),
                          routing.view.expert_weights.subspan(begin * kK, count * kK),
                          kK};
    for (Kernels* kernels : {kernels_.get(), single_thread_kernels_.get()}) {
      const OwnedMatrix some = CopyAs(kF32, residual.view.Rows(begin, count));
      kernels->ExpertFfn(x.view.Rows(begin, count), part, bank.view, some.view);
      EXPECT_TRUE(BitEqual(some.view, all.view.Rows(begin, count))) << begin << " + " << count;
    }
  }
}

TEST_P(CpuKernelsTest, ExpertFfnInPartsOfTheExpertsAddsUp) {
  constexpr int64_t kRows = 90;
  constexpr int64_t kExperts = 11;
  const OwnedMatrix x = Random(dtype(), kRows, 88);
  const TestExperts experts = MakeExperts(random_, kExperts, 88, 40);
  const TestRouting routing = MakeRouting(kRows, 3);
  kernels_->RouteExperts(Random(kF32, kRows, kExperts).view, true, routing.view);
  const TestBank plain = PackBank(*reference_, experts, routing.view);
  const OwnedMatrix expected = MakeMatrix(kF32, kRows, 88);
  reference_->ExpertFfn(CopyAs(kF32, x.view).view, routing.view, plain.view, expected.view);
  const OwnedMatrix residual = MakeMatrix(kF32, kRows, 88);
  const OwnedMatrix plain_residual = MakeMatrix(kF32, kRows, 88);
  for (const bool is_odd : {false, true}) {
    const TestRouting part = MakeRouting(kRows, 3);
    std::ranges::copy(routing.view.expert_weights, part.view.expert_weights.begin());
    std::ranges::transform(
        routing.view.expert_ids, part.view.expert_ids.begin(), [&](int32_t expert) {
          return (expert % 2 == 1) == is_odd ? expert : Routing::kNoExpert;
        });
    const TestBank bank = PackBank(*kernels_, experts, part.view);  // the others are null
    kernels_->ExpertFfn(x.view, part.view, bank.view, residual.view);
    const TestBank plain_bank = PackBank(*reference_, experts, part.view);
    reference_->ExpertFfn(
        CopyAs(kF32, x.view).view, part.view, plain_bank.view, plain_residual.view);
  }
  ExpectNear(plain_residual.view, expected.view, 1e-5);
  ExpectNear(residual.view, expected.view, is_bf16() ? 0x1p-6 : 1e-5);
}

TEST_P(CpuKernelsTest, DenseFfnIsABankOfOneExpert) {
  const OwnedMatrix x = Random(dtype(), 33, 64);
  const TestExperts experts = MakeExperts(random_, 1, 64, 200);
  TestRouting routing = MakeRouting(33, 1);
  std::fill(routing.expert_weights.begin(), routing.expert_weights.end(), 1.0f);
  const TestBank bank = PackBank(*kernels_, experts, routing.view);
  const TestBank plain = PackBank(*reference_, experts, routing.view);
  const OwnedMatrix residual = MakeMatrix(kF32, 33, 64);
  const OwnedMatrix expected = MakeMatrix(kF32, 33, 64);
  reference_->ExpertFfn(CopyAs(kF32, x.view).view, routing.view, plain.view, expected.view);
  kernels_->ExpertFfn(x.view, routing.view, bank.view, residual.view);
  ExpectNear(residual.view, expected.view, is_bf16() ? 0x1p-6 : 1e-5);
}

TEST_P(CpuKernelsTest, EmbedWidensEveryTableDType) {
  const OwnedMatrix bf16 = Random(kBf16, 9, 37);
  const OwnedMatrix f32 = CopyAs(kF32, bf16.view);
  const std::vector<spec::TokenId> tokens = {8, 0, 3, 3};
  for (const Matrix& table : {bf16.view, f32.view}) {
    const OwnedMatrix hidden = MakeMatrix(kF32, 4, 37);
    kernels_->Embed(tokens, table, hidden.view);
    for (int64_t row = 0; row < 4; ++row) {
      EXPECT_TRUE(BitEqual(hidden.view.Rows(row, 1), f32.view.Rows(tokens[row], 1)));
    }
  }
}

TEST_P(CpuKernelsTest, RmsNormEqualsReference) {
  for (const int64_t dim : {1, 5, 96, 1000, 2048}) {
    const OwnedMatrix x = Random(kF32, 21, dim);
    const OwnedMatrix weight = Random(kF32, 1, dim);
    const std::span<const float> weights(weight.view.row<float>(0), dim);
    const OwnedMatrix expected = MakeMatrix(kF32, 21, dim);
    reference_->RmsNorm(x.view, weights, 1e-6f, expected.view);
    for (const spec::DType out_dtype : {dtype(), kF32}) {
      const OwnedMatrix y = MakeMatrix(out_dtype, 21, dim);
      kernels_->RmsNorm(x.view, weights, 1e-6f, y.view);
      ExpectNear(y.view, expected.view, tolerance(out_dtype));
    }
  }
}

TEST_P(CpuKernelsTest, HeadNormRopeEqualsReferenceWithAndWithoutNorm) {
  for (const int32_t head_dim : {6, 40, 128}) {
    const int32_t half = head_dim / 2;
    const int64_t angle_count = int64_t{50} * half;
    const OwnedMatrix angles = Random(kF32, 1, angle_count);
    std::vector<float> cos(angle_count);
    std::vector<float> sin(angle_count);
    for (int64_t i = 0; i < angle_count; ++i) {
      cos[i] = std::cos(angles.view.row<float>(0)[i]);
      sin[i] = std::sin(angles.view.row<float>(0)[i]);
    }
    const RopeTable rope{cos, sin, half};
    const OwnedMatrix weight = Random(kF32, 1, head_dim);
    const std::vector<int32_t> positions = {0, 49, 7, 7, 13};
    for (const int64_t norm_count : {0, head_dim}) {
      const std::span<const float> norm(weight.view.row<float>(0), norm_count);
      const OwnedMatrix heads = Random(dtype(), 5, int64_t{3} * head_dim);
      const OwnedMatrix expected = CopyAs(kF32, heads.view);
      reference_->HeadNormRope(expected.view, head_dim, norm, 1e-6f, positions, rope);
      kernels_->HeadNormRope(heads.view, head_dim, norm, 1e-6f, positions, rope);
      ExpectNear(heads.view, expected.view, tolerance(dtype()));
    }
  }
}

TEST_P(CpuKernelsTest, RouteExpertsChoosesLikeReference) {
  for (const auto [expert_count, k] : {std::array<int64_t, 2>{1, 1},
                                       std::array<int64_t, 2>{60, 4},
                                       std::array<int64_t, 2>{128, 8},
                                       std::array<int64_t, 2>{512, 10}}) {
    const OwnedMatrix logits = Random(kF32, 40, expert_count, 0.5f);  // bf16 values: many ties
    for (const bool normalize : {false, true}) {
      const TestRouting actual = MakeRouting(40, k);
      const TestRouting expected = MakeRouting(40, k);
      kernels_->RouteExperts(logits.view, normalize, actual.view);
      reference_->RouteExperts(logits.view, normalize, expected.view);
      EXPECT_EQ(actual.expert_ids, expected.expert_ids);
      EXPECT_THAT(actual.expert_weights,
                  testing::Pointwise(testing::FloatNear(1e-6f), expected.expert_weights));
    }
  }
}

TEST_P(CpuKernelsTest, ARouterRowWithNanChoosesDistinctExpertsAndSpoilsOnlyItself) {
  const OwnedMatrix logits = Random(kF32, 2, 8);
  std::fill_n(logits.view.row<float>(0), 7, kNan);
  const TestRouting routing = MakeRouting(2, 3);
  kernels_->RouteExperts(logits.view, true, routing.view);
  EXPECT_EQ(std::vector<int32_t>(routing.expert_ids.begin(), routing.expert_ids.begin() + 3),
            (std::vector<int32_t>{7, 0, 1}));
  EXPECT_TRUE(std::isnan(routing.expert_weights[0]));
  EXPECT_NEAR(
      std::accumulate(routing.expert_weights.begin() + 3, routing.expert_weights.end(), 0.f),
      1.0f,
      1e-6f);
}

TEST_P(CpuKernelsTest, ReduceLogitsEqualsReference) {
  const OwnedMatrix logits = Random(kF32, 3, 5003, 4.0f);
  const std::vector<spec::TokenId> columns = {5002, 0, 17};
  const std::vector<LogitAsk> asks = {{columns, 0}, {{}, 7}, {columns, 6000}};
  std::vector<LogitAnswer> actual(3);
  std::vector<LogitAnswer> expected(3);
  kernels_->ReduceLogits(logits.view, asks, actual);
  reference_->ReduceLogits(logits.view, asks, expected);
  for (size_t row = 0; row < 3; ++row) {
    EXPECT_EQ(actual[row].column_logits, expected[row].column_logits);
    EXPECT_NEAR(actual[row].log_sum_exp, expected[row].log_sum_exp, 2e-6);
    ASSERT_EQ(actual[row].top.size(), expected[row].top.size());
    for (size_t i = 0; i < expected[row].top.size(); ++i) {
      EXPECT_EQ(actual[row].top[i].token, expected[row].top[i].token);
      EXPECT_EQ(actual[row].top[i].logit, expected[row].top[i].logit);
    }
  }
}

TEST_P(CpuKernelsTest, NanAmongLogitsMakesTheSumNanAndComesLastInTheTop) {
  for (const int64_t place : {0, 500, 1002}) {
    const OwnedMatrix logits = Random(kF32, 2, 1003);
    logits.view.row<float>(0)[place] = kNan;
    const std::vector<LogitAsk> asks(2, LogitAsk{{}, 3});
    std::vector<LogitAnswer> answers(2);
    kernels_->ReduceLogits(logits.view, asks, answers);
    EXPECT_TRUE(std::isnan(answers[0].log_sum_exp));
    EXPECT_FALSE(std::isnan(answers[1].log_sum_exp));
    EXPECT_FALSE(std::isnan(answers[0].top[2].logit));
  }
}

TEST_P(CpuKernelsTest, ColumnLogitsEqualReference) {
  const OwnedMatrix x = Random(dtype(), 1, 203);
  const OwnedMatrix table = Random(kBf16, 40, 203);
  const OwnedMatrix f32_table = CopyAs(kF32, table.view);
  const std::vector<spec::TokenId> columns = {39, 0, 11, 11};
  std::vector<float> expected(4);
  reference_->ColumnLogits(CopyAs(kF32, x.view).view, table.view, columns, expected);
  for (const Matrix& view : {table.view, f32_table.view}) {
    std::vector<float> actual(4);
    kernels_->ColumnLogits(x.view, view, columns, actual);
    EXPECT_THAT(actual, testing::Pointwise(testing::FloatNear(2e-4f), expected));
  }
}

TEST_P(CpuKernelsTest, NanInOneRowOfAProductStaysThere) {
  const OwnedMatrix x = Random(dtype(), 30, 64);
  StoreElement(x.view, 11, 3, kNan);
  const memory::Buffer packed = Pack(*kernels_, Random(kBf16, 32, 64).view);
  const OwnedMatrix y = MakeMatrix(kF32, 30, 32);
  kernels_->MatMul(x.view, {packed.data(), 32, 64}, y.view);
  for (int64_t row = 0; row < 30; ++row) {
    EXPECT_EQ(std::isnan(y.view.row<float>(row)[5]), row == 11) << row;
  }
}

INSTANTIATE_TEST_SUITE_P(Forms,
                         CpuKernelsTest,
                         testing::Values(Form::kBf16, Form::kBf16AsF32, Form::kF32),
                         NameOfForm);

TEST(CreateKernelsTest, RefusesF16AndNamesItsImplementation) {
  base::ThreadPool pool(1);
  EXPECT_EQ(CreateKernels(spec::DType::kF16, pool).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(CreateKernels(kF32, pool).value()->name()), testing::HasSubstr("f32"));
}

TEST(CreateKernelsTest, F32ProductsOfBf16WeightsHaveANameAndALayoutOfTheirOwn) {
  base::ThreadPool pool(1);
  const std::unique_ptr<Kernels> kernels = CreateKernelsWithF32Products(kBf16, pool).value();
  const std::unique_ptr<Kernels> f32_kernels = CreateKernels(kF32, pool).value();
  EXPECT_EQ(kernels->activation_dtype(), kBf16);
  EXPECT_THAT(std::string(kernels->name()), testing::HasSubstr("bf16 weights, f32 products"));
  EXPECT_THAT(kernels->layout_name(), testing::HasSubstr("bf16 in the order of f32"));
  EXPECT_NE(kernels->layout_name(), f32_kernels->layout_name());
  EXPECT_EQ(2 * kernels->expert_layout(2048, 768).bytes,
            f32_kernels->expert_layout(2048, 768).bytes);
}

// How fast is a benchmark's affair.
TEST(MeasurePeakFlopsTest, MeasuresBothTypes) {
  base::ThreadPool pool(2);
  for (const spec::DType dtype : {kBf16, kF32}) {
    const double flops_per_s = MeasurePeakFlops(dtype, pool, 0.01);
    EXPECT_TRUE(std::isfinite(flops_per_s) && flops_per_s > 0) << flops_per_s;
  }
}

}  // namespace
}  // namespace zp::ops::cpu
