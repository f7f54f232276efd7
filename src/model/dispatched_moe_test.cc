#include "model/dispatched_moe.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/bfloat16.h"
#include "base/thread_pool.h"
#include "fabric/exchange_local.h"
#include "gtest/gtest.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::model {
namespace {

using base::BFloat16;
using spec::DType;

constexpr int32_t kExperts = 13;
constexpr int64_t kModelDim = 88;
constexpr int64_t kExpertDim = 40;
constexpr int64_t kPerToken = 4;

class Owned {
 public:
  Owned(DType dtype, int64_t rows, int64_t cols)
      : bytes_(std::max<size_t>(rows * cols * spec::SizeOf(dtype), 1), "test"),
        view_{bytes_.data(), dtype, rows, cols, cols} {}
  Owned(DType dtype, int64_t rows, int64_t cols, uint32_t seed) : Owned(dtype, rows, cols) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * cols; ++i) {
      if (dtype == DType::kF32) {
        view_.row<float>(0)[i] = normal(random);
      } else {
        view_.row<BFloat16>(0)[i] = BFloat16(normal(random));
      }
    }
  }
  const ops::Matrix& view() const { return view_; }
  std::vector<float> floats() const {
    return {view_.row<float>(0), view_.row<float>(0) + view_.rows * view_.cols};
  }

 private:
  memory::Buffer bytes_;
  ops::Matrix view_;
};

// The rows of one rank with their routing.
struct Chunk {
  Chunk(ops::Kernels& kernels, int64_t rows, uint32_t seed)
      : x(kernels.activation_dtype(), rows, kModelDim, seed),
        residual(DType::kF32, rows, kModelDim, seed + 1),
        ids(rows * kPerToken),
        weights(rows * kPerToken) {
    const Owned logits(DType::kF32, rows, kExperts, seed + 2);
    kernels.RouteExperts(logits.view(), true, routing());
  }
  ops::Routing routing() { return {ids, weights, kPerToken}; }

  Owned x, residual;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

class DispatchedMoeTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const auto kernels = MakeKernels(pool_);
    layout_ = kernels->expert_layout(kModelDim, kExpertDim);
    bank_ = memory::Buffer(kExperts * layout_.bytes, "test");
    for (int32_t expert = 0; expert < kExperts; ++expert) {
      const auto seed = static_cast<uint32_t>(100 + 10 * expert);
      const Owned gate(DType::kBf16, kExpertDim, kModelDim, seed);
      const Owned up(DType::kBf16, kExpertDim, kModelDim, seed + 1);
      const Owned down(DType::kBf16, kModelDim, kExpertDim, seed + 2);
      const auto blob = bank_.bytes().subspan(expert * layout_.bytes, layout_.bytes);
      kernels->PackExpert(gate.view(), up.view(), down.view(), blob);
      blobs_.push_back(blob.data());
    }
  }

  std::unique_ptr<ops::Kernels> MakeKernels(base::ThreadPool& pool) const {
    return std::move(*ops::cpu::CreateKernels(GetParam(), pool));
  }

  // By definition: each rank's experts alone, rounded to what travels, added in rising order.
  std::vector<float> Expected(ops::Kernels& kernels, const Chunk& chunk, int32_t rank_count) {
    std::vector<float> weights = chunk.weights;
    std::vector<float> result = chunk.residual.floats();
    for (int32_t rank = 0; rank < rank_count; ++rank) {
      std::vector<int32_t> ids = chunk.ids;
      for (int32_t& expert : ids) {
        expert =
            OwnerOfExpert(expert, kExperts, rank_count) == rank ? expert : ops::Routing::kNoExpert;
      }
      const Owned sums(DType::kF32, chunk.x.view().rows, kModelDim);
      kernels.ExpertFfn(chunk.x.view(), {ids, weights, kPerToken}, {layout_, blobs_}, sums.view());
      const std::vector<float> partial = sums.floats();
      for (size_t i = 0; i < result.size(); ++i) {
        result[i] +=
            GetParam() == DType::kF32 ? partial[i] : static_cast<float>(BFloat16(partial[i]));
      }
    }
    return result;
  }

  // One layer of one rank, in as many chunks as `row_counts` has.
  void RunRank(fabric::Exchange& exchange,
               const std::vector<int64_t>& row_counts,
               const DispatchOptions& options) {
    base::ThreadPool pool(1);
    const auto kernels = MakeKernels(pool);
    std::vector<const std::byte*> local = blobs_;
    for (int32_t expert = 0; expert < kExperts; ++expert) {
      if (OwnerOfExpert(expert, kExperts, exchange.rank_count()) != exchange.rank()) {
        local[expert] = nullptr;
      }
    }
    DispatchedMoe moe(
        {true},
        layout_,
        OwnersOfExperts(kExperts, exchange.rank_count()),
        [&](int32_t) { return std::span<const std::byte* const>(local); },
        exchange,
        *kernels,
        options);
    PassProfile profile;
    profile.Clear(1, 0);
    // Twice: a layer finds nothing of the one before.
    for (uint32_t layer = 0; layer < 2; ++layer) {
      profile.BeginLayer(0);
      moe.BeginLayer(0);
      std::vector<std::unique_ptr<Chunk>> chunks;
      std::vector<std::vector<float>> expected;
      for (size_t i = 0; i < row_counts.size(); ++i) {
        const auto seed =
            static_cast<uint32_t>(1000 * exchange.rank() + 10 * static_cast<int>(i)) + 5 * layer;
        Chunk& chunk = *chunks.emplace_back(std::make_unique<Chunk>(*kernels, row_counts[i], seed));
        expected.push_back(Expected(*kernels, chunk, exchange.rank_count()));
        // x is gone when Run returns.
        Owned x(GetParam(), row_counts[i], kModelDim, seed);
        const absl::Status status =
            moe.Run(0, x.view(), chunk.routing(), chunk.residual.view(), profile);
        ASSERT_TRUE(status.ok()) << status;
      }
      const absl::Status status = moe.EndLayer(0, profile);
      ASSERT_TRUE(status.ok()) << status;
      for (size_t i = 0; i < chunks.size(); ++i) {
        EXPECT_EQ(chunks[i]->residual.floats(), expected[i])
            << "rank " << exchange.rank() << ", chunk " << i;
      }
    }
  }

  void RunRanks(const DispatchOptions& options) {
    const std::vector<std::vector<int64_t>> chunks = {{10}, {100, 300, 100}, {}, {1, 64}};
    for (const int32_t rank_count : {1, 2, 3, 4}) {
      auto exchanges = fabric::MakeLocalExchanges(rank_count, std::chrono::minutes(1));
      std::vector<std::jthread> threads;
      for (int32_t rank = 0; rank < rank_count; ++rank) {
        threads.emplace_back([&, rank] { RunRank(*exchanges[rank], chunks[rank], options); });
      }
    }
  }

  base::ThreadPool pool_{1};
  ops::ExpertLayout layout_;
  memory::Buffer bank_;
  std::vector<const std::byte*> blobs_;
};

TEST_P(DispatchedMoeTest, AddsThePartialSumsOfAllRanksToTheBit) { RunRanks({}); }

TEST_P(DispatchedMoeTest, AddsTheSameWhenAChunkTravelsInParts) {
  RunRanks({.part_rows = 64});
  RunRanks({.part_rows = 7});
}

TEST_P(DispatchedMoeTest, AddsTheSameWhenPartsOverlap) {
  RunRanks({.overlaps = true});
  RunRanks({.part_rows = 64, .overlaps = true});
  RunRanks({.part_rows = 7, .overlaps = true});
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         DispatchedMoeTest,
                         testing::Values(DType::kBf16, DType::kF32),
                         [](const auto& dtype) { return std::string(NameOf(dtype.param)); });

}  // namespace
}  // namespace zp::model
