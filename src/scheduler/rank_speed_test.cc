#include "scheduler/rank_speed.h"

#include "gtest/gtest.h"

namespace zp::scheduler {
namespace {

TEST(RankSpeed, ComputesAsFastHoweverLongItWaitsForWeights) {
  RankSpeed speed(/*first_flops_per_s=*/1);
  speed.Learn({.flops = 100, .exposed_wait_seconds = 0}, 100, 1);
  speed.Learn({.flops = 10, .exposed_wait_seconds = 0.9}, 10, 1);
  EXPECT_NEAR(speed.compute_flops_per_s(), 100, 1e-9);
  EXPECT_LT(speed.flops_per_s(), 60);
}

}  // namespace
}  // namespace zp::scheduler
