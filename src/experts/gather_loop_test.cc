// The gather loop with played time and played sources.
#include "experts/gather_loop.h"

#include <chrono>
#include <map>

#include "experts/fake_source.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::experts {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr size_t kSlice = 4096;
constexpr size_t kBlob = 5 * kSlice;

ExpertCatalog SmallCatalog() {
  return {.layer_has_experts = {true, true, true}, .expert_count = 6, .expert_bytes = kBlob};
}

class GatherLoopTest : public testing::Test {
 protected:
  GatherLoopTest() : blobs_(SmallCatalog(), 1), window_(6 * kBlob) {}

  GatherLoop MakeLoop(std::vector<ExpertSource> sources) {
    return GatherLoop(std::move(sources), 2, /*verify_checksums=*/true, {.slice_bytes = kSlice});
  }

  void Begin(GatherLoop& loop, LayerIndex layer) {
    std::vector<BlobTarget> targets;
    for (int32_t expert = 0; expert < 6; ++expert) {
      targets.push_back({.expert = expert,
                         .destination = std::span(window_).subspan(expert * kBlob, kBlob),
                         .checksum = blobs_.checksums[layer][expert]});
    }
    loop.Begin(0, layer, targets, now_);
  }

  // Turns until the slot is done, a millisecond each.
  absl::Status Finish(GatherLoop& loop, int most_turns = 100'000) {
    for (int turn = 0; turn < most_turns; ++turn) {
      if (loop.IsDone(0)) {
        return loop.TakeDone(0);
      }
      loop.Turn(now_);
      now_ += milliseconds(1);
    }
    return absl::DeadlineExceededError("the slot is never done");
  }

  bool Arrived(LayerIndex layer) const { return window_ == blobs_.objects[layer]; }

  FakeBlobs blobs_;
  std::vector<std::byte> window_;
  FakeSwitches fast_, slow_, file_;
  GatherLoop::Clock::time_point now_{};
};

TEST_F(GatherLoopTest, BringsEveryBlobOfALayer) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  for (LayerIndex layer = 0; layer < 3; ++layer) {
    Begin(loop, layer);
    EXPECT_EQ(Finish(loop), absl::OkStatus());
    EXPECT_TRUE(Arrived(layer));
    EXPECT_EQ(loop.bytes_by_source(0)[0], 6 * kBlob);
  }
}

TEST_F(GatherLoopTest, AsksEachHolderOnlyForWhatItHas) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(
      SourceKind::kPeer, "even", blobs_, fast_, [](LayerIndex, int32_t e) { return e % 2 == 0; }));
  sources.push_back(MakeFakeSource(
      SourceKind::kPeer, "odd", blobs_, slow_, [](LayerIndex, int32_t e) { return e % 2 == 1; }));
  GatherLoop loop = MakeLoop(std::move(sources));
  Begin(loop, 1);
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_TRUE(Arrived(1));
  EXPECT_EQ(loop.bytes_by_source(0)[0], 3 * kBlob);
  EXPECT_EQ(loop.bytes_by_source(0)[1], 3 * kBlob);
}

TEST_F(GatherLoopTest, TheFasterHolderDeliversMore) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "fast", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "slow", blobs_, slow_));
  fast_.reads_per_poll = 3;
  slow_.reads_per_poll = 1;
  GatherLoop loop = MakeLoop(std::move(sources));
  int64_t fast_bytes = 0;
  int64_t slow_bytes = 0;
  for (int round = 0; round < 20; ++round) {
    Begin(loop, round % 3);
    EXPECT_EQ(Finish(loop), absl::OkStatus());
    EXPECT_TRUE(Arrived(round % 3));
    fast_bytes += loop.bytes_by_source(0)[0];
    slow_bytes += loop.bytes_by_source(0)[1];
  }
  EXPECT_GT(fast_bytes, 2 * slow_bytes);
  EXPECT_GT(slow_bytes, 0);
}

TEST_F(GatherLoopTest, ASourceThatStopsIsReplaced) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  fast_.stopped = true;
  const auto begin = now_;
  Begin(loop, 2);
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_TRUE(Arrived(2));
  EXPECT_GE(fast_.abandoned, 1);
  EXPECT_LT(now_ - begin, milliseconds(2200));
  // While it is down, nobody waits for it.
  const auto second = now_;
  Begin(loop, 0);
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_LT(now_ - second, milliseconds(200));
  // It comes back: one slice first, then its share.
  fast_.stopped = false;
  now_ += milliseconds(5000);
  Begin(loop, 1);
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_TRUE(Arrived(1));
  EXPECT_GT(loop.bytes_by_source(0)[0], 0);
}

// The time it was gone must not count as the time it takes, or it would be too slow for ever.
TEST_F(GatherLoopTest, ASourceThatComesBackIsUsedThoughTheOtherIsEnough) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  Begin(loop, 0);
  ASSERT_EQ(Finish(loop), absl::OkStatus());
  fast_.stopped = true;
  Begin(loop, 1);
  ASSERT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_EQ(fast_.abandoned, 1);
  fast_.stopped = false;
  int64_t bytes = 0;
  for (int layer = 0; layer < 100; ++layer) {
    Begin(loop, layer % 3);
    ASSERT_EQ(Finish(loop), absl::OkStatus());
    bytes += loop.bytes_by_source(0)[0];
    now_ += milliseconds(50);
  }
  EXPECT_GT(bytes, 20 * 6 * static_cast<int64_t>(kBlob));
}

// Not even while it is tried again, and again.
TEST_F(GatherLoopTest, NobodyWaitsForASourceThatIsLost) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  fast_.stopped = true;
  Begin(loop, 0);
  ASSERT_EQ(Finish(loop), absl::OkStatus());  // two seconds, once
  for (int layer = 0; layer < 2000; ++layer) {
    const auto begin = now_;
    Begin(loop, layer % 3);
    ASSERT_EQ(Finish(loop), absl::OkStatus());
    ASSERT_LT(now_ - begin, milliseconds(100)) << "at layer " << layer;
    now_ += milliseconds(20);
  }
  EXPECT_GT(fast_.abandoned, 3);
}

TEST_F(GatherLoopTest, ASourceThatWasSlowIsTriedAgain) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "fast", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "slow", blobs_, slow_));
  GatherLoop loop = MakeLoop(std::move(sources));
  const auto bytes_of_slow = [&](int layers) {
    int64_t bytes = 0;
    for (int layer = 0; layer < layers; ++layer) {
      Begin(loop, layer % 3);
      EXPECT_EQ(Finish(loop), absl::OkStatus());
      bytes += loop.bytes_by_source(0)[1];
    }
    return bytes;
  };
  // One slow answer, and nothing more for it.
  slow_.stopped = true;
  Begin(loop, 0);
  for (int turn = 0; turn < 1000; ++turn) {
    loop.Turn(now_);
    now_ += milliseconds(1);
  }
  slow_.stopped = false;
  ASSERT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_EQ(bytes_of_slow(100), 0);
  now_ += milliseconds(30'000);
  bytes_of_slow(2);
  EXPECT_GT(bytes_of_slow(100), 20 * 6 * static_cast<int64_t>(kBlob));
}

TEST_F(GatherLoopTest, ALostPeerThatAloneHasAnExpertIsAskedAgainUntilItIsBack) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer", blobs_, fast_));
  GatherLoop loop = MakeLoop(std::move(sources));
  fast_.error = ECONNRESET;
  Begin(loop, 0);
  EXPECT_EQ(Finish(loop, 3000).code(), absl::StatusCode::kDeadlineExceeded);
  fast_.error = 0;
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_TRUE(Arrived(0));
}

TEST_F(GatherLoopTest, GivesUpWhenNobodyHasAnExpertForLong) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer 10.0.0.2", blobs_, fast_));
  GatherLoop loop = MakeLoop(std::move(sources));
  fast_.error = ECONNREFUSED;
  Begin(loop, 0);
  const absl::Status status = Finish(loop);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("layer 0, expert 0 cannot be had from anywhere: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("peer 10.0.0.2"));
  // And the next gather begins afresh.
  fast_.error = 0;
  now_ += std::chrono::seconds(60);
  Begin(loop, 1);
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_TRUE(Arrived(1));
}

TEST_F(GatherLoopTest, WrongBytesAreReadAgainFromAnother) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  fast_.corrupt = true;
  for (LayerIndex layer = 0; layer < 3; ++layer) {
    Begin(loop, layer);
    EXPECT_EQ(Finish(loop), absl::OkStatus());
    EXPECT_TRUE(Arrived(layer));
  }
}

// The peer, asked alone after a wrong checksum, stops: the file has the blob all the same.
TEST_F(GatherLoopTest, ASourceAskedAloneThatStopsIsReplaced) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  fast_.corrupt = true;
  file_.stopped = true;
  Begin(loop, 0);
  EXPECT_EQ(Finish(loop, 10).code(), absl::StatusCode::kDeadlineExceeded);
  fast_.stopped = true;
  file_.stopped = false;
  const auto begin = now_;
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_TRUE(Arrived(0));
  EXPECT_LT(now_ - begin, milliseconds(2200));
}

TEST_F(GatherLoopTest, ASlowFileIsNotGivenUpForAPeerThatIsLost) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kPeer, "peer", blobs_, fast_));
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  fast_.error = ECONNREFUSED;
  file_.stopped = true;
  Begin(loop, 1);
  EXPECT_EQ(Finish(loop, 10'000).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(file_.abandoned, 0);
  file_.stopped = false;
  EXPECT_EQ(Finish(loop), absl::OkStatus());
  EXPECT_TRUE(Arrived(1));
}

TEST_F(GatherLoopTest, ACorruptFileIsAnErrorThatNamesTheExpert) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file experts-00002.bin", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  file_.corrupt = true;
  Begin(loop, 2);
  const absl::Status status = Finish(loop);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("file experts-00002.bin, layer 2, expert"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("checksum is"));
}

TEST_F(GatherLoopTest, AFileThatCannotBeReadIsAnError) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  file_.error = EIO;
  Begin(loop, 0);
  EXPECT_EQ(Finish(loop).code(), absl::StatusCode::kDataLoss);
}

TEST_F(GatherLoopTest, ADroppedSlotEndsOnceNothingIsInFlight) {
  std::vector<ExpertSource> sources;
  sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
  GatherLoop loop = MakeLoop(std::move(sources));
  file_.reads_per_poll = 0;
  Begin(loop, 0);
  loop.Turn(now_);
  loop.Drop(0);
  EXPECT_FALSE(loop.IsDone(0));
  file_.reads_per_poll = 100;
  EXPECT_EQ(Finish(loop).code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace zp::experts
