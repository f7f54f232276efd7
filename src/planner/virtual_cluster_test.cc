#include "planner/virtual_cluster.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "spec/model_shapes.h"

namespace zp::planner {
namespace {

class VirtualCluster : public testing::Test {
 protected:
  ReplayResult Replay(const Trace& trace, const ReplayPace& pace, const std::string& policy) {
    auto result =
        ReplayVirtually(trace, pace, spec_, machine_, options_, *routing::MakePolicy(policy));
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  const spec::ModelSpec spec_ = *spec::FindModelShape("qwen3-30b-a3b");
  const MachineModel machine_ = *FindMachine("h100-nvlink");
  VirtualClusterOptions options_ = {
      .ranks = 4, .rank = {.queue = {.max_batch_tokens = 32'768}, .cache_bytes = int64_t{8} << 30}};
};

TEST_F(VirtualCluster, AnswersEveryRequestOfEveryTraceByEveryPolicy) {
  for (const std::string name : {"few-shot", "documents", "rerank", "conversation", "uneven"}) {
    const Trace trace = *GenerateTrace(name, 200, 1);
    for (const std::string& policy : routing::PolicyNames()) {
      const ReplayResult result = Replay(trace, {.requests_in_flight = 64}, policy);
      EXPECT_EQ(result.asked_tokens, trace.token_count()) << name << " " << policy;
      EXPECT_GT(std::ranges::min(result.latency_s), 0) << name << " " << policy;
      EXPECT_GE(result.redundancy(), 1) << name << " " << policy;
      EXPECT_LE(result.hit_rate(), IdealHitRate(trace)) << name << " " << policy;
    }
  }
}

TEST_F(VirtualCluster, IsTheSameEachTime) {
  const Trace trace = *GenerateTrace("conversation", 200, 1);
  const ReplayPace pace = {.time_scale = 0.01};
  const ReplayResult one = Replay(trace, pace, "full");
  const ReplayResult again = Replay(trace, pace, "full");
  EXPECT_EQ(one.latency_s, again.latency_s);
  EXPECT_EQ(one.computed_tokens, again.computed_tokens);
}

TEST_F(VirtualCluster, ALoneRequestTakesOnePassThatWaitsForItsWeights) {
  options_.ranks = 8;
  const Trace trace = *GenerateTrace("uneven", 1, 1);
  const ReplayResult result = Replay(trace, {.requests_in_flight = 1}, "full");
  const RankModel model(spec_, machine_, options_.ranks);
  EXPECT_EQ(result.pass_count, 1);
  EXPECT_NEAR(result.latency_s[0], model.PassSeconds(result.computed_flops), 1e-6);
  EXPECT_NEAR(result.exposed_wait_seconds, model.ExposedWaitSeconds(result.computed_flops), 1e-6);
}

TEST_F(VirtualCluster, OneRankComputesNothingTwice) {
  options_.ranks = 1;
  const Trace trace = *GenerateTrace("few-shot", 300, 1);
  const ReplayResult result = Replay(trace, {.requests_in_flight = 16}, "full");
  EXPECT_LT(result.redundancy(), 1.05);  // what lies in a block that is not whole
}

TEST_F(VirtualCluster, ALongBeginningIsComputedAheadOverSeveralPassesAndOnce) {
  options_.ranks = 1;
  const Trace trace = {
      .name = "long",
      .requests = {{.prompts = {{.runs = {{.content = 1, .token_count = 16'384}}}}}}};
  const ReplayResult result = Replay(trace, {.requests_in_flight = 1}, "full");
  EXPECT_GT(result.pass_count, 8);
  EXPECT_EQ(result.computed_tokens, 16'384);
  EXPECT_EQ(result.cached_tokens, 0) << "what it computed itself is no gain";
  options_.rank.cache_bytes = 0;
  EXPECT_EQ(Replay(trace, {.requests_in_flight = 1}, "full").pass_count, 1);
}

// All wait at one rank, and together they are twice what its cache holds.
TEST_F(VirtualCluster, AWorkFindsWhatWasHeldWhenItBeganToWait) {
  options_.ranks = 1;
  options_.rank.ahead_tokens = 0;
  Trace trace = {.name = "again"};
  for (uint64_t content = 0; content < 40; ++content) {
    const uint64_t first = content == 39 ? 0 : content;
    trace.requests.push_back(
        {.prompts = {{.runs = {{.content = first, .token_count = 4'096}, {content, 16}}}}});
  }
  const ReplayResult result = Replay(trace, {.requests_in_flight = 40}, "full");
  EXPECT_EQ(result.computed_tokens, result.distinct_tokens);
}

TEST_F(VirtualCluster, NoPolicyIsFasterThanTheBound) {
  for (const std::string name : {"few-shot", "documents", "uneven"}) {
    const Trace trace = *GenerateTrace(name, 200, 1);
    for (const int32_t in_flight : {4, 64}) {
      const ReplayResult result =
          Replay(trace, {.requests_in_flight = in_flight, .think_s = 0.005}, "full");
      EXPECT_GT(result.least_seconds, 0);
      EXPECT_LE(result.least_seconds, result.seconds) << name << " " << in_flight;
    }
  }
}

// The arithmetic of docs/physics.md: T* of about 11,500 tokens on eight H100 without a margin.
TEST(RankModel, ReproducesTheSaturationOfThePhysics) {
  const spec::ModelSpec spec = *spec::FindModelShape("qwen3-30b-a3b");
  const RankModel model(spec, *FindMachine("h100-nvlink"), 8);
  const double tokens = model.saturation_flops() / spec.layer_count / 113.8e6;
  EXPECT_NEAR(tokens, 11'500, 300);
  EXPECT_NEAR(model.ExposedWaitSeconds(model.saturation_flops()), 0, 1e-9);
  EXPECT_GT(model.ExposedWaitSeconds(0.5 * model.saturation_flops()), 0);
}

}  // namespace
}  // namespace zp::planner
