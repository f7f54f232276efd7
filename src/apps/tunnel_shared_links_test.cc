#include "apps/tunnel_shared_links.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "apps/shared_memory.h"
#include "gtest/gtest.h"

namespace zp::apps {
namespace {

using Clock = SharedLinks::Clock;

constexpr double kRate = 100e6;
// What a booking may be off by: a bin's bytes.
constexpr double kBinSeconds = 65536 / kRate;

class SharedLinksTest : public testing::Test {
 protected:
  void SetUp() override {
    memory_ = *SharedMemory::Create(SharedLinks::BytesFor(kRanks));
    links_ = std::make_unique<SharedLinks>(memory_->bytes(), kRanks);
    links_->SetRate(kRate);
  }

  // Seconds of the virtual clock, which no test waits for.
  static Clock::time_point At(double seconds) {
    return Clock::time_point(
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1000 + seconds)));
  }
  double Book(int32_t source, int32_t target, double bytes, double now = 0) {
    const Clock::time_point arrival =
        links_->Book(source, target, static_cast<int64_t>(bytes), At(now));
    return std::chrono::duration<double>(arrival - At(0)).count();
  }

  static constexpr int32_t kRanks = 8;
  std::unique_ptr<SharedMemory> memory_;
  std::unique_ptr<SharedLinks> links_;
};

TEST_F(SharedLinksTest, ATransferTakesItsBytesOverTheRate) {
  EXPECT_NEAR(Book(0, 1, 1), 0, kBinSeconds);
  EXPECT_NEAR(Book(2, 3, 50e6), 0.5, kBinSeconds);
  EXPECT_GE(Book(4, 5, 1e6, 3.0001), 3.0101 - 1e-6);
  EXPECT_NEAR(Book(6, 7, 0, 2), 2, 1e-9);
}

TEST_F(SharedLinksTest, HasNoLimitBeforeItsRateIsSet) {
  const auto memory = *SharedMemory::Create(SharedLinks::BytesFor(2));
  SharedLinks links(memory->bytes(), 2);
  EXPECT_EQ(links.Book(0, 1, int64_t{1} << 40, At(5)), At(5));
}

TEST_F(SharedLinksTest, TransfersFromOneRankShareItsLinkAndSoDoThoseToOne) {
  EXPECT_NEAR(Book(0, 1, 10e6), 0.1, kBinSeconds);
  EXPECT_NEAR(Book(0, 2, 10e6), 0.2, 2 * kBinSeconds);  // waits for the sender
  EXPECT_NEAR(Book(3, 2, 10e6), 0.1, 2 * kBinSeconds);  // the receiver was free until then
  EXPECT_NEAR(Book(4, 2, 10e6), 0.3, 2 * kBinSeconds);
}

TEST_F(SharedLinksTest, BothDirectionsOfALinkAreIndependent) {
  EXPECT_NEAR(Book(0, 1, 10e6), 0.1, kBinSeconds);
  EXPECT_NEAR(Book(1, 0, 10e6), 0.1, kBinSeconds);
}

// Everyone to everyone, each beginning with its next neighbour: nobody ever waits.
TEST_F(SharedLinksTest, AnAllToAllInStepFillsEveryLink) {
  double last = 0;
  for (int32_t source = 0; source < kRanks; ++source) {
    for (int32_t distance = 1; distance < kRanks; ++distance) {
      last = std::max(last, Book(source, (source + distance) % kRanks, 5e6));
    }
  }
  EXPECT_NEAR(last, 0.05 * (kRanks - 1), kRanks * kBinSeconds);
}

// One sender books far ahead; what it leaves of a receiver's time is there for others.
TEST_F(SharedLinksTest, AGapIsFilledByWhoComesLater) {
  EXPECT_NEAR(Book(0, 1, 10e6), 0.1, kBinSeconds);
  EXPECT_NEAR(Book(0, 2, 10e6), 0.2, 2 * kBinSeconds);  // rank 2 receives from 0.1 on
  EXPECT_NEAR(Book(3, 2, 8e6), 0.08, 2 * kBinSeconds);
}

// Any bookings: none faster than a free link, and of everything that crosses one direction never
// more than the rate; and all are through before the busiest two directions could be one after the
// other, as first come, first served is never worse than that.
TEST_F(SharedLinksTest, NeverCarriesMoreThanTheRateAndNeverIdlesInVain) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<double> sent(kRanks), received(kRanks), sent_end(kRanks), received_end(kRanks);
  for (int transfer = 0; transfer < 400; ++transfer) {
    const auto source = static_cast<int32_t>(random() % kRanks);
    const auto target = static_cast<int32_t>((source + 1 + random() % (kRanks - 1)) % kRanks);
    const double bytes = random() % 4'000'000;
    const double end = Book(source, target, bytes);
    EXPECT_GE(end, bytes / kRate - 1e-6);
    sent[source] += bytes;
    received[target] += bytes;
    EXPECT_LE(end, (sent[source] + received[target]) / kRate + 4 * kBinSeconds);
    sent_end[source] = std::max(sent_end[source], end);
    received_end[target] = std::max(received_end[target], end);
  }
  for (int32_t rank = 0; rank < kRanks; ++rank) {
    EXPECT_GE(sent_end[rank], sent[rank] / kRate - kBinSeconds);
    EXPECT_GE(received_end[rank], received[rank] / kRate - kBinSeconds);
  }
}

TEST_F(SharedLinksTest, ATransferBeyondTheTimetableIsPacedToo) {
  EXPECT_NEAR(Book(0, 1, 6e9), 60, 0.01);
}

TEST_F(SharedLinksTest, TimeGoesRoundTheTimetable) {
  for (double now = 0; now < 200; now += 10) {
    EXPECT_NEAR(Book(0, 1, 500e6, now), now + 5, kBinSeconds);
  }
}

// All at once from threads: what one direction carries is still within the rate.
TEST_F(SharedLinksTest, HoldsTheRateWhenManyBookAtOnce) {
  constexpr int kBookings = 500;
  constexpr double kBytes = 100'000;
  std::vector<double> ends(kRanks);
  {
    std::vector<std::jthread> threads;
    for (int32_t source = 1; source < kRanks; ++source) {
      threads.emplace_back([&, source] {
        for (int booking = 0; booking < kBookings; ++booking) {
          ends[source] = std::max(ends[source], Book(source, 0, kBytes));
        }
      });
    }
  }
  const double bound = kBytes * kBookings * (kRanks - 1) / kRate;
  EXPECT_GE(*std::ranges::max_element(ends), bound - kBinSeconds);
}

}  // namespace
}  // namespace zp::apps
