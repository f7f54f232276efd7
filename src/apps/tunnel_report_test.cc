#include "apps/tunnel_report.h"

#include "gtest/gtest.h"
#include "spec/model_shapes.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

RankRun Took(int64_t tokens, double seconds) {
  return {.tokens = tokens,
          .seconds = seconds,
          .wait_seconds = seconds / 10,
          .flops = 1e9 * static_cast<double>(tokens)};
}

double Median(const json::object& line, const char* key) {
  return line.at(key).as_object().at("median").to_number<double>();
}

TunnelSetting Setting() {
  spec::ModelSpec spec = spec::WithLayerCount(*spec::FindModelShape("qwen3-30b-a3b"), 3);
  return {.shape = "qwen3-30b-a3b",
          .balance = "h100-nvlink",
          .spec = spec,
          .placement = {.ranks = 2},
          .rounds = 1,
          .load = 1.3,
          .peak_flops_per_s = 4e11,
          .link_bytes_per_s = 1.8e8};
}

TEST(StrategyRoundsTest, CountsUntilTheLastRankIsThrough) {
  StrategyRounds rounds;
  rounds.Record({Took(1000, 10), Took(500, 4)}, /*pass_count=*/1);
  EXPECT_DOUBLE_EQ(rounds.tokens_per_s[0], 150);
  EXPECT_DOUBLE_EQ(rounds.busy_tokens_per_s[0], 100 + 125);
  EXPECT_DOUBLE_EQ(rounds.others_tokens_per_s[0], 100);
  EXPECT_DOUBLE_EQ(rounds.wait_fraction[0], 0.1);
}

TEST(StrategyRoundsTest, LeavesIdleRanksOutOfWhatRanksAchieve) {
  StrategyRounds rounds;
  rounds.Record({Took(1000, 10), Took(0, 0.001)}, /*pass_count=*/1);
  EXPECT_DOUBLE_EQ(rounds.tokens_per_s[0], 100);
  EXPECT_DOUBLE_EQ(rounds.flops_per_s[0], 1e11);
}

TEST(ReportCaseTest, ComparesStrategiesRoundByRound) {
  TunnelCase even{.name = "256", .work = *MakeWork("256", Setting().spec, 2, 1000)};
  even.strategies["gather"].Record({Took(1000, 10), Took(1000, 10)}, 1);
  even.strategies["dispatch"].Record({Took(1000, 12), Took(1000, 12)}, 1);
  even.strategies["resident"].Record({Took(1000, 9), Took(1000, 9)}, 1);
  even.strategies["alone"].Record({Took(1000, 8)}, 1);
  const json::object line = ReportCase(Setting(), even, nullptr);
  EXPECT_DOUBLE_EQ(Median(line, "ratio"), 1.2);
  EXPECT_DOUBLE_EQ(Median(line, "of_resident"), 0.9);
  EXPECT_DOUBLE_EQ(Median(line, "scaling"), 0.8);
  EXPECT_FALSE(line.contains("ratio_overlap"));
  EXPECT_FALSE(line.contains("others_of_even"));
  EXPECT_FALSE(line.at("above_saturation").as_bool());
  EXPECT_EQ(line.at("cpu_quota").as_string(), "none: own cores");
}

TEST(ReportCaseTest, CountsNoWaitInWhatTheKernelsAchieve) {
  const auto saturation_of = [](double wait_seconds) {
    TunnelCase even{.name = "256", .work = *MakeWork("256", Setting().spec, 2, 1000)};
    RankRun run = Took(1000, 10 + wait_seconds);
    run.wait_seconds = wait_seconds;
    even.strategies["gather"].Record({run, run}, 1);
    return ReportCase(Setting(), even, nullptr).at("saturation_tokens").as_double();
  };
  EXPECT_NEAR(saturation_of(40), saturation_of(0), 1e-6 * saturation_of(0));
}

TEST(ReportCaseTest, HoldsTheOtherRanksAgainstTheEvenCase) {
  TunnelCase even{.name = "256", .work = *MakeWork("256", Setting().spec, 2, 1000)};
  TunnelCase twice{.name = "double", .work = *MakeWork("double", Setting().spec, 2, 1000)};
  even.strategies["gather"].Record({Took(1000, 10), Took(1000, 10)}, 1);
  even.strategies["dispatch"].Record({Took(1000, 12), Took(1000, 12)}, 1);
  twice.strategies["gather"].Record({Took(1000, 10), Took(2000, 20)}, 1);
  twice.strategies["dispatch"].Record({Took(1000, 24), Took(2000, 24)}, 1);
  const json::object line = ReportCase(Setting(), twice, &even);
  const json::object& others = line.at("others_of_even").as_object();
  EXPECT_DOUBLE_EQ(Median(others, "gather"), 1);
  EXPECT_DOUBLE_EQ(Median(others, "dispatch"), 0.5);
}

TEST(ReportCaseTest, SaysWhetherGatheringChangedAnAnswer) {
  const auto are_equal = [](uint64_t of_last_rank) {
    TunnelCase even{.name = "256", .work = *MakeWork("256", Setting().spec, 2, 1000)};
    RankRun first = Took(1000, 10);
    RankRun last = Took(1000, 10);
    first.answers_checksum = last.answers_checksum = 7;
    even.strategies["resident"].Record({first, last}, 1);
    last.answers_checksum = of_last_rank;
    even.strategies["gather"].Record({first, last}, 1);
    return ReportCase(Setting(), even, nullptr).at("answers_equal").as_bool();
  };
  EXPECT_TRUE(are_equal(7));
  EXPECT_FALSE(are_equal(8));
}

TEST(RankRunTest, ComesBackFromJsonAndRefusesWhatLacksAField) {
  RankRun run = Took(7, 2.5);
  run.gathered_bytes = 1e9;
  run.answers_checksum = ~uint64_t{0};
  const RankRun back = *RankRun::FromJson(run.ToJson());
  EXPECT_EQ(back.tokens, 7);
  EXPECT_DOUBLE_EQ(back.seconds, 2.5);
  EXPECT_DOUBLE_EQ(back.gathered_bytes, 1e9);
  EXPECT_EQ(back.answers_checksum, ~uint64_t{0});
  EXPECT_FALSE(RankRun::FromJson(json::object{{"tokens", 7}}).ok());
}

}  // namespace
}  // namespace zp::apps
