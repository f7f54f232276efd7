#include "routing/saturation.h"

#include "gtest/gtest.h"

namespace zp::routing {
namespace {

constexpr SaturationOptions kOptions = {.first_saturation_flops = 100, .first_flops_per_s = 7};

TEST(Saturation, IsTheConfiguredUntilARankReports) {
  Saturation saturation(kOptions);
  EXPECT_EQ(saturation.saturation_flops(5), 100);
  EXPECT_EQ(saturation.flops_per_s(5), 7);
  saturation.OnReport(5, {.flops_per_s = 0});  // of its cache alone
  EXPECT_EQ(saturation.saturation_flops(5), 100);
  EXPECT_EQ(saturation.flops_per_s(5), 7);
}

TEST(Saturation, FollowsTheReports) {
  Saturation saturation(kOptions);
  saturation.OnReport(1, {.flops_per_s = 10, .saturation_flops = 200});
  EXPECT_EQ(saturation.saturation_flops(1), 200);
  EXPECT_EQ(saturation.flops_per_s(1), 10);
  EXPECT_EQ(saturation.compute_flops_per_s(1), 10);
  saturation.OnReport(1, {.flops_per_s = 20, .compute_flops_per_s = 40, .saturation_flops = 0});
  EXPECT_EQ(saturation.flops_per_s(1), 20);
  EXPECT_EQ(saturation.compute_flops_per_s(1), 40);
  EXPECT_EQ(saturation.saturation_flops(1), 0) << "nothing is gathered any more";
  EXPECT_EQ(saturation.flops_per_s(1), 20);
}

TEST(Saturation, ADoubtedRankIsThoughtAsTheOthersAre) {
  Saturation saturation(kOptions);
  saturation.OnReport(0, {.flops_per_s = 10});
  saturation.OnReport(1, {.flops_per_s = 30});
  saturation.Doubt(1);
  saturation.Doubt(1);
  EXPECT_EQ(saturation.flops_per_s(1), 10);
  EXPECT_EQ(saturation.flops_per_s(2), 10);
  saturation.Believe(1);
  saturation.Believe(1);
  EXPECT_EQ(saturation.flops_per_s(1), 30);
  EXPECT_EQ(saturation.flops_per_s(2), 20);
  saturation.Doubt(1);
  saturation.OnReport(1, {.flops_per_s = 50});
  EXPECT_EQ(saturation.flops_per_s(1), 50);
  EXPECT_EQ(saturation.flops_per_s(2), 30);
  saturation.Doubt(3);  // nothing is known of it
  EXPECT_EQ(saturation.flops_per_s(3), 30);
}

TEST(Saturation, ANewRankIsThoughtAsTheOthersAre) {
  Saturation saturation(kOptions);
  saturation.OnReport(0, {.flops_per_s = 10, .saturation_flops = 300});
  saturation.OnReport(1, {.flops_per_s = 30, .compute_flops_per_s = 50, .saturation_flops = 100});
  EXPECT_EQ(saturation.flops_per_s(2), 20);
  EXPECT_EQ(saturation.compute_flops_per_s(2), 30);
  EXPECT_EQ(saturation.saturation_flops(2), 200);
  saturation.Forget(1);
  EXPECT_EQ(saturation.flops_per_s(1), 10);
  EXPECT_EQ(saturation.compute_flops_per_s(1), 10);
  EXPECT_EQ(saturation.saturation_flops(1), 300);
  saturation.Forget(0);
  saturation.Forget(0);
  EXPECT_EQ(saturation.flops_per_s(0), 7);
}

}  // namespace
}  // namespace zp::routing
