// A worker and a gateway of this process, over real sockets of this machine. Nothing is timed: a
// test waits until what must happen has happened, and the time-out of ctest ends it if it does not.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cluster/host_address.h"
#include "gtest/gtest.h"
#include "workplane/remote_host.h"
#include "workplane/report_board.h"
#include "workplane/testing.h"
#include "workplane/work_server.h"

namespace zp::workplane {

inline constexpr char kToken[] = "a token of the tests";
inline constexpr char kModel[] = "qwen3/amx";

// Ranks and their server. The ranks stay when the server is killed.
class Worker {
 public:
  explicit Worker(int32_t rank_count = 1, FakeRank::Answer answer = &AnswerTo)
      : board_(rank_count) {
    options.join_token = kToken;
    options.model_fingerprint = kModel;
    options.max_held_blocks = 1 << 20;
    for (int32_t rank = 0; rank < rank_count; ++rank) {
      ranks_.push_back(std::make_unique<FakeRank>(answer));
    }
  }

  void Start() {
    std::vector<protocol::WorkSink*> sinks;
    for (const auto& rank : ranks_) {
      sinks.push_back(rank.get());
    }
    auto server = WorkServer::Start(options, sinks, board_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    options.port = server_->port();  // it comes back at the same place
  }
  void Kill() { server_.reset(); }

  std::string address() const { return cluster::TargetOf("127.0.0.1", options.port); }
  FakeRank& rank(int32_t rank = 0) { return *ranks_[rank]; }
  ReportBoard& board() { return board_; }
  WorkServer& server() { return *server_; }

  WorkServerOptions options;

 private:
  ReportBoard board_;
  std::vector<std::unique_ptr<FakeRank>> ranks_;
  std::unique_ptr<WorkServer> server_;
};

// The outcome of one work, when it comes.
class Outcome {
 public:
  protocol::WorkSink::Done Done() {
    return [this](absl::StatusOr<protocol::WorkResult> result) {
      const std::lock_guard lock(mutex_);
      EXPECT_FALSE(result_.has_value()) << "answered twice";
      result_ = std::move(result);
      changed_.notify_all();
    };
  }
  const absl::StatusOr<protocol::WorkResult>& Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return result_.has_value(); });
    return *result_;
  }
  absl::Status WaitForStatus() { return Wait().status(); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<absl::StatusOr<protocol::WorkResult>> result_;
};

// A gateway's view of one worker.
class Gateway {
 public:
  Gateway() {
    options.host = 3;
    options.join_token = kToken;
    options.model_fingerprint = kModel;
    options.ping_interval = std::chrono::milliseconds(50);
    options.first_pause = std::chrono::milliseconds(5);
    options.longest_pause = std::chrono::milliseconds(20);
  }
  ~Gateway() { Stop(); }

  RemoteHost& Connect(const std::string& address) {
    host_ = RemoteHost::Create(
        options,
        {.on_up = [this](int32_t host, int32_t rank_count) { OnUp(host, rank_count); },
         .on_down = [this](int32_t host, const absl::Status& why) { OnDown(host, why); },
         .on_report =
             [this](int32_t host, int32_t rank, const protocol::RankReport& report) {
               OnReport(host, rank, report);
             }});
    host_->SetAddress(address);
    return *host_;
  }
  void Stop() {
    if (host_ != nullptr) {
      host_->Stop();
    }
  }

  void WaitUp(size_t count = 1) {
    Wait([&] { return up_count_ >= count; });
  }
  // Why it is down.
  std::string WaitDown(size_t count = 1) {
    Wait([&] { return down_count_ >= count; });
    const std::lock_guard lock(mutex_);
    return base::MessageOf(why_);
  }
  void WaitForHeld(int32_t rank, const std::set<uint64_t>& blocks) {
    Wait([&] { return held_[rank] == blocks; });
  }
  double flops_per_s(int32_t rank) {
    const std::lock_guard lock(mutex_);
    return flops_per_s_[rank];
  }
  int32_t rank_count() {
    const std::lock_guard lock(mutex_);
    return rank_count_;
  }
  // What the host says while it does not come up.
  std::string WaitForComplaint(const std::string& part) {
    while (true) {
      const std::string complaint = base::MessageOf(host_->status());
      if (complaint.find(part) != std::string::npos) {
        return complaint;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

  RemoteHost& host() { return *host_; }
  protocol::WorkSink& rank(int32_t rank = 0) { return host_->rank(rank); }

  RemoteHostOptions options;

 private:
  void OnUp(int32_t host, int32_t rank_count) {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(host, options.host);
    EXPECT_EQ(up_count_, down_count_) << "up twice";
    ++up_count_;
    rank_count_ = rank_count;
    held_.clear();
    has_cleared_.clear();
    changed_.notify_all();
  }
  void OnDown(int32_t host, const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(host, options.host);
    EXPECT_EQ(up_count_, down_count_ + 1) << "down twice";
    EXPECT_FALSE(why.ok());
    ++down_count_;
    why_ = why;
    changed_.notify_all();
  }
  void OnReport(int32_t host, int32_t rank, const protocol::RankReport& report) {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(host, options.host);
    EXPECT_TRUE(report.cache.is_cleared || has_cleared_.contains(rank)) << "the first clears";
    if (report.cache.is_cleared) {
      has_cleared_.insert(rank);
      held_[rank].clear();
    }
    for (const protocol::BlockHash& block : report.cache.removed) {
      held_[rank].erase(block.high);
    }
    for (const protocol::BlockHash& block : report.cache.stored) {
      held_[rank].insert(block.high);
    }
    flops_per_s_[rank] = report.flops_per_s;
    changed_.notify_all();
  }

  template <typename Predicate>
  void Wait(const Predicate& predicate) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, predicate);
  }

  std::mutex mutex_;  // of all below up to why_
  std::condition_variable changed_;
  size_t up_count_ = 0;
  size_t down_count_ = 0;
  int32_t rank_count_ = 0;
  std::map<int32_t, std::set<uint64_t>> held_;
  std::set<int32_t> has_cleared_;
  std::map<int32_t, double> flops_per_s_;
  absl::Status why_;
  std::unique_ptr<RemoteHost> host_;
};

}  // namespace zp::workplane
