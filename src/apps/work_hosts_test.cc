// A gateway and workers of this process, which find each other through a real control plane.

#include "apps/work_hosts.h"

#include <map>
#include <set>

#include "cluster/coordinator.h"
#include "cluster/member.h"
#include "gtest/gtest.h"
#include "workplane/loopback_testing.h"

namespace zp::apps {
namespace {

using workplane::kModel;
using workplane::kToken;
using workplane::Outcome;
using workplane::Worker;

// Knows which ranks there are, as a router does.
class Ranks {
 public:
  RankEvents Events() {
    return {.add =
                [this](int32_t id, protocol::WorkSink& sink) {
                  const std::lock_guard lock(mutex_);
                  EXPECT_TRUE(sinks_.emplace(id, &sink).second) << "added twice";
                  const auto [known, is_new] = known_.emplace(id, &sink);
                  EXPECT_EQ(known->second, &sink) << "another sink under the same id";
                  changed_.notify_all();
                },
            .remove =
                [this](int32_t id) {
                  const std::lock_guard lock(mutex_);
                  EXPECT_EQ(sinks_.erase(id), 1u) << "removed twice";
                  flops_per_s_.erase(id);
                  changed_.notify_all();
                },
            .report =
                [this](int32_t id, const protocol::RankReport& report) {
                  const std::lock_guard lock(mutex_);
                  EXPECT_TRUE(sinks_.contains(id)) << "a report of a rank that is not there";
                  flops_per_s_[id] = report.flops_per_s;
                  changed_.notify_all();
                }};
  }

  void WaitFor(const std::set<int32_t>& ids) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      std::set<int32_t> there;
      for (const auto& [id, sink] : sinks_) {
        there.insert(id);
      }
      return there == ids;
    });
  }
  void WaitForSpeed(int32_t id, double flops_per_s) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return flops_per_s_[id] == flops_per_s; });
  }
  absl::Status Ask(int32_t id) {
    protocol::WorkSink* sink = nullptr;
    {
      const std::lock_guard lock(mutex_);
      sink = known_.at(id);
    }
    protocol::Work work;
    work.sequences.emplace_back().tokens = {1};
    Outcome outcome;
    const absl::Status status = sink->Submit(work, {}, outcome.Done());
    return status.ok() ? outcome.WaitForStatus() : status;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int32_t, protocol::WorkSink*> sinks_;
  std::map<int32_t, protocol::WorkSink*> known_;
  std::map<int32_t, double> flops_per_s_;
};

workplane::RemoteHostOptions ForHosts() {
  workplane::RemoteHostOptions options;
  options.join_token = kToken;
  options.model_fingerprint = kModel;
  options.first_pause = std::chrono::milliseconds(5);
  options.longest_pause = std::chrono::milliseconds(20);
  return options;
}

class WorkHostsTest : public testing::Test {
 protected:
  WorkHostsTest() : hosts_(0, ForHosts(), ranks_.Events()) {
    auto coordinator = cluster::Coordinator::Start(
        {.join_token = kToken,
         .model_fingerprint = kModel,
         .placement = {.host_slots = 3, .expert_memory_bytes = 1000, .rank_count = 2},
         .heartbeat_interval = std::chrono::milliseconds(20)},
        [this](const cluster::Membership& membership) { hosts_.OnChange(membership); });
    EXPECT_TRUE(coordinator.ok()) << coordinator.status();
    coordinator_ = *std::move(coordinator);
  }

  std::unique_ptr<cluster::Member> Join(const Worker& worker) {
    auto member =
        cluster::Member::Join({.coordinator = cluster::TargetOf("127.0.0.1", coordinator_->port()),
                               .join_token = kToken,
                               .model_fingerprint = kModel,
                               .expert_memory_bytes = 1000});
    EXPECT_TRUE(member.ok()) << member.status();
    EXPECT_TRUE((*member)->Publish({"memory", worker.address()}).ok());
    return *std::move(member);
  }

  Ranks ranks_;
  WorkHosts hosts_;
  std::unique_ptr<cluster::Coordinator> coordinator_;
};

TEST_F(WorkHostsTest, RanksComeAndGoWithTheirHosts) {
  Worker first(2);
  Worker second(1);
  first.Start();
  second.Start();
  ASSERT_TRUE(coordinator_->SetSelf({"own memory"}).ok());
  const auto first_member = Join(first);
  const std::set<int32_t> ranks_of_first = {RankIdOf(1, 0), RankIdOf(1, 1)};
  ranks_.WaitFor(ranks_of_first);
  auto second_member = Join(second);
  ranks_.WaitFor({RankIdOf(1, 0), RankIdOf(1, 1), RankIdOf(2, 0)});
  EXPECT_TRUE(ranks_.Ask(RankIdOf(1, 1)).ok());
  EXPECT_TRUE(ranks_.Ask(RankIdOf(2, 0)).ok());
  first.board().OnReport(1, workplane::ReportOf(5));
  ranks_.WaitForSpeed(RankIdOf(1, 1), 5);
  second_member.reset();
  second.Kill();
  ranks_.WaitFor(ranks_of_first);
  EXPECT_TRUE(absl::IsUnavailable(ranks_.Ask(RankIdOf(2, 0)))) << "its sink is still there";
}

TEST_F(WorkHostsTest, AHostThatIsStartedAnewComesBackUnderItsIds) {
  Worker worker(1);
  worker.Start();
  auto member = Join(worker);
  ranks_.WaitFor({RankIdOf(1, 0)});
  worker.Kill();
  member.reset();
  ranks_.WaitFor({});
  Worker anew(2);  // elsewhere, and with another rank
  anew.Start();
  member = Join(anew);
  ranks_.WaitFor({RankIdOf(1, 0), RankIdOf(1, 1)});
  EXPECT_TRUE(ranks_.Ask(RankIdOf(1, 0)).ok());
  EXPECT_EQ(anew.rank().brought_count(), 1u);
}

TEST_F(WorkHostsTest, AfterStopTheRanksRefuseButAreThere) {
  Worker worker(1);
  worker.Start();
  const auto member = Join(worker);
  ranks_.WaitFor({RankIdOf(1, 0)});
  hosts_.Stop();
  ranks_.WaitFor({});
  EXPECT_TRUE(absl::IsUnavailable(ranks_.Ask(RankIdOf(1, 0))));
}

}  // namespace
}  // namespace zp::apps
