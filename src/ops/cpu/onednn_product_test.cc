// The products against sums in f64, and what the whole system rests on: a row's result is the same
// to the last bit whatever else is computed with it.
#include "ops/cpu/onednn_product.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/cpu/random_matrix.h"

namespace zp::ops::cpu {
namespace {

constexpr spec::DType kBf16 = spec::DType::kBf16;
constexpr spec::DType kF32 = spec::DType::kF32;

enum class Kind { kBf16, kBf16AsF32, kF32 };

std::string NameOfKind(const testing::TestParamInfo<Kind>& info) {
  constexpr std::array kNames = {"Bf16", "Bf16AsF32", "F32"};
  return kNames[static_cast<size_t>(info.param)];
}

struct Shape {
  int64_t out_dim;
  int64_t in_dim;
};

// Even and odd, below, at and off the multiples of 16, 32 and 64 that kernels like.
constexpr std::array kShapes = {Shape{1, 1},
                                Shape{40, 24},
                                Shape{33, 17},
                                Shape{64, 64},
                                Shape{130, 70},
                                Shape{1000, 960},
                                Shape{520, 333},
                                Shape{96, 2048},
                                Shape{512, 2048}};

class ProductTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam() == Kind::kBf16 && OneDnnProduct::FastestFor(kBf16) != kBf16) {
      GTEST_SKIP() << "this CPU has no bf16 instructions";
    }
    RecordProperty("seed", static_cast<int>(seed_));
    std::cout << "seed " << seed_ << "\n";
    product_ = Create();
  }

  std::unique_ptr<OneDnnProduct> Create() const {
    switch (GetParam()) {
      case Kind::kBf16:
        return std::make_unique<OneDnnProduct>(kBf16, kBf16, 1);
      case Kind::kBf16AsF32:
        return std::make_unique<OneDnnProduct>(kBf16, kF32, 1);
      case Kind::kF32:
        return std::make_unique<OneDnnProduct>(kF32, kF32, 1);
    }
    return nullptr;
  }

  spec::DType x_dtype() const { return GetParam() == Kind::kF32 ? kF32 : kBf16; }

  memory::Buffer Pack(const ConstMatrix& weight, const ConstMatrix* up = nullptr) const {
    memory::Buffer packed(product_->packed_bytes(weight.rows, weight.cols, up != nullptr), "test");
    product_->Pack(weight, up, packed.bytes());
    return packed;
  }

  void Multiply(const ConstMatrix& x, const ProductWeight& weight, const Matrix& y) {
    Multiply(x, weight, y, product_->blocks_per_run(/*is_fp8=*/false));
  }

  void Multiply(const ConstMatrix& x,
                const ProductWeight& weight,
                const Matrix& y,
                int64_t blocks_per_run) {
    for (int64_t run = 0; run < RowRunCount(x.rows, blocks_per_run); ++run) {
      const RowRange rows = RowRun(x.rows, run, blocks_per_run);
      product_->Run(
          0,
          {.data = x.Rows(rows.begin, 0).data,
           .row_stride = x.row_stride,
           .rows = rows.end - rows.begin},
          weight,
          {0, product_->panel_count(weight.out_dim, weight.gated)},
          {.data = y.Rows(rows.begin, 0).data, .dtype = y.dtype, .row_stride = y.row_stride});
    }
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  std::unique_ptr<OneDnnProduct> product_;
  std::unique_ptr<OneDnnProduct> f32_product_ = std::make_unique<OneDnnProduct>(kF32, kF32, 1);
};

double DotInF64(const ConstMatrix& x, int64_t x_row, const ConstMatrix& w, int64_t w_row) {
  double sum = 0;
  for (int64_t i = 0; i < x.cols; ++i) {
    sum += double{LoadElement(x, x_row, i)} * LoadElement(w, w_row, i);
  }
  return sum;
}

// f32 sums of `terms` products of normal deviates: the rounding of each step is 2^-24 of a partial
// sum of size sqrt(terms).
double SumTolerance(int64_t terms) { return 1e-6 * static_cast<double>(terms) + 1e-6; }

TEST_P(ProductTest, EqualsSumsInF64) {
  for (const Shape shape : kShapes) {
    const OwnedMatrix x = RandomMatrix(random_, x_dtype(), 19, shape.in_dim);
    const OwnedMatrix w = RandomMatrix(random_, kBf16, shape.out_dim, shape.in_dim);
    const memory::Buffer packed = Pack(w.view);
    const OwnedMatrix y = MakeMatrix(kF32, 19, shape.out_dim);
    Multiply(x.view, {packed.data(), shape.out_dim, shape.in_dim}, y.view);
    for (int64_t row = 0; row < y.view.rows; ++row) {
      for (int64_t col = 0; col < shape.out_dim; ++col) {
        ASSERT_NEAR(y.view.row<float>(row)[col],
                    DotInF64(x.view, row, w.view, col),
                    SumTolerance(shape.in_dim))
            << shape.out_dim << "x" << shape.in_dim << " at " << row << ", " << col;
      }
    }
  }
}

TEST_P(ProductTest, RowsAreBitEqualForEveryRowCountAndPlace) {
  constexpr int64_t kRows = 600;
  for (const Shape shape : kShapes) {
    const OwnedMatrix x = RandomMatrix(random_, x_dtype(), kRows, shape.in_dim);
    const OwnedMatrix w = RandomMatrix(random_, kBf16, shape.out_dim, shape.in_dim);
    const memory::Buffer packed = Pack(w.view);
    const ProductWeight weight{packed.data(), shape.out_dim, shape.in_dim};
    const OwnedMatrix all = MakeMatrix(kF32, kRows, shape.out_dim);
    Multiply(x.view, weight, all.view);
    std::uniform_int_distribution<int64_t> any_count(1, kRows);
    for (const int64_t count : {int64_t{1},
                                int64_t{2},
                                int64_t{3},
                                int64_t{5},
                                int64_t{16},
                                int64_t{31},
                                any_count(random_),
                                any_count(random_),
                                any_count(random_)}) {
      const int64_t begin = std::uniform_int_distribution<int64_t>(0, kRows - count)(random_);
      const int64_t blocks_per_run =
          std::uniform_int_distribution<int64_t>(1, kWidenedRunBlocks)(random_);
      const OwnedMatrix some = MakeMatrix(kF32, count, shape.out_dim);
      Multiply(x.view.Rows(begin, count), weight, some.view, blocks_per_run);
      ASSERT_EQ(0,
                std::memcmp(some.view.data,
                            all.view.Rows(begin, 0).data,
                            static_cast<size_t>(count * shape.out_dim) * sizeof(float)))
          << shape.out_dim << "x" << shape.in_dim << ", rows " << begin << " + " << count << " by "
          << blocks_per_run;
    }
  }
}

TEST_P(ProductTest, EachRangeOfPanelsIsAProductOfItsOwn) {
  const Shape shape{1000, 96};
  const OwnedMatrix x = RandomMatrix(random_, x_dtype(), 40, shape.in_dim);
  const OwnedMatrix w = RandomMatrix(random_, kBf16, shape.out_dim, shape.in_dim);
  const memory::Buffer packed = Pack(w.view);
  const ProductWeight weight{packed.data(), shape.out_dim, shape.in_dim};
  const OwnedMatrix whole = MakeMatrix(x_dtype(), 40, shape.out_dim);
  Multiply(x.view, weight, whole.view);
  const OwnedMatrix parts = MakeMatrix(x_dtype(), 40, shape.out_dim);
  for (int64_t panel = 0; panel < product_->panel_count(shape.out_dim, false); ++panel) {
    product_->Run(0,
                  {.data = x.view.data, .row_stride = shape.in_dim, .rows = 40},
                  weight,
                  {panel, panel + 1},
                  {.data = parts.view.data, .dtype = x_dtype(), .row_stride = shape.out_dim});
  }
  EXPECT_EQ(0, std::memcmp(whole.view.data, parts.view.data, whole.buffer.size_bytes()));
}

TEST_P(ProductTest, GatedWeightsYieldSiluOfGateTimesUp) {
  for (const Shape shape : {Shape{40, 64}, Shape{300, 50}, Shape{768, 33}}) {
    const OwnedMatrix x = RandomMatrix(random_, x_dtype(), 9, shape.in_dim, 0.5f);
    const OwnedMatrix gate = RandomMatrix(random_, kBf16, shape.out_dim, shape.in_dim);
    const OwnedMatrix up = RandomMatrix(random_, kBf16, shape.out_dim, shape.in_dim);
    const ConstMatrix up_view = up.view;
    const memory::Buffer packed = Pack(gate.view, &up_view);
    const OwnedMatrix y = MakeMatrix(kF32, 9, shape.out_dim);
    Multiply(x.view, {packed.data(), shape.out_dim, shape.in_dim, true}, y.view);
    for (int64_t row = 0; row < y.view.rows; ++row) {
      for (int64_t col = 0; col < shape.out_dim; ++col) {
        const double g = DotInF64(x.view, row, gate.view, col);
        const double u = DotInF64(x.view, row, up.view, col);
        const double expected = g / (1 + std::exp(-g)) * u;
        ASSERT_NEAR(y.view.row<float>(row)[col],
                    expected,
                    SumTolerance(shape.in_dim) * (1 + std::fabs(g) + std::fabs(u)))
            << row << ", " << col;
      }
    }
  }
}

TEST_P(ProductTest, AddsWeightedRowsWhereTheirIdsSay) {
  const Shape shape{70, 48};
  const OwnedMatrix x = RandomMatrix(random_, x_dtype(), 30, shape.in_dim);
  const OwnedMatrix w = RandomMatrix(random_, kBf16, shape.out_dim, shape.in_dim);
  const memory::Buffer packed = Pack(w.view);
  const OwnedMatrix y = RandomMatrix(random_, kF32, 30, shape.out_dim);
  const OwnedMatrix before = CopyAs(kF32, y.view);
  const std::vector<int32_t> from = {29, 3, 4, 5, 17, 0, 1};
  const std::vector<int32_t> to = {2, 4, 8, 16, 25, 29, 0};
  const std::vector<float> weights = {0.5f, 0.25f, -1.0f, 2.0f, 0.125f, 0.0f, 1.0f};
  product_->Run(0,
                {.data = x.view.data, .row_stride = shape.in_dim, .ids = from.data(), .rows = 7},
                {packed.data(), shape.out_dim, shape.in_dim},
                {0, product_->panel_count(shape.out_dim, false)},
                {.data = y.view.data,
                 .row_stride = shape.out_dim,
                 .ids = to.data(),
                 .add = true,
                 .weights = weights.data()});
  for (int64_t row = 0; row < 30; ++row) {
    const auto place = std::find(to.begin(), to.end(), row) - to.begin();
    for (int64_t col = 0; col < shape.out_dim; ++col) {
      const double added =
          place < 7 ? weights[place] * DotInF64(x.view, from[place], w.view, col) : 0.0;
      ASSERT_NEAR(y.view.row<float>(row)[col], before.view.row<float>(row)[col] + added, 1e-4);
    }
  }
}

TEST_P(ProductTest, PacksEveryDTypeAlike) {
  const OwnedMatrix bf16 = RandomMatrix(random_, kBf16, 50, 37);
  const OwnedMatrix f32 = CopyAs(kF32, bf16.view);
  EXPECT_THAT(Pack(f32.view).bytes(), testing::ElementsAreArray(Pack(bf16.view).bytes()));
}

TEST_P(ProductTest, UsesNoReferenceImplementation) {
  EXPECT_THAT(product_->name(), testing::Not(testing::HasSubstr("ref")));
}

TEST_P(ProductTest, PackedNumbersAreAsLargeAsTheirDType) {
  EXPECT_EQ(product_->packed_bytes(768, 2048, true), 2 * 768 * 2048 * spec::SizeOf(x_dtype()));
  EXPECT_EQ(product_->packed_bytes(2048, 768, false), 2048 * 768 * spec::SizeOf(x_dtype()));
}

// Widening is exact, and products of bf16 are exact in f32: what is widened on its way is, to the
// bit, what was widened before. Panels of both kinds have other widths, which must not show.
TEST_P(ProductTest, WidenedOnTheWayEqualsWidenedBefore) {
  if (GetParam() != Kind::kBf16AsF32) {
    GTEST_SKIP() << "nothing is widened";
  }
  for (const Shape shape : kShapes) {
    const OwnedMatrix x = RandomMatrix(random_, kBf16, 300, shape.in_dim);
    const OwnedMatrix w = RandomMatrix(random_, kBf16, shape.out_dim, shape.in_dim);
    const memory::Buffer packed = Pack(w.view);
    const OwnedMatrix y = MakeMatrix(kF32, 300, shape.out_dim);
    Multiply(x.view, {packed.data(), shape.out_dim, shape.in_dim}, y.view);
    std::swap(product_, f32_product_);
    const memory::Buffer wide = Pack(w.view);
    const OwnedMatrix of_wide = MakeMatrix(kF32, 300, shape.out_dim);
    Multiply(CopyAs(kF32, x.view).view, {wide.data(), shape.out_dim, shape.in_dim}, of_wide.view);
    std::swap(product_, f32_product_);
    EXPECT_EQ(0, std::memcmp(y.view.data, of_wide.view.data, y.buffer.size_bytes()))
        << shape.out_dim << "x" << shape.in_dim;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds,
                         ProductTest,
                         testing::Values(Kind::kBf16, Kind::kBf16AsF32, Kind::kF32),
                         NameOfKind);

}  // namespace
}  // namespace zp::ops::cpu
