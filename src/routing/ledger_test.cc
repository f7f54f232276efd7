#include "routing/ledger.h"

#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace zp::routing {
namespace {

TEST(Ledger, AReservationGivesBackOnceWhateverBecomesOfIt) {
  Ledger ledger;
  {
    Ledger::Reservation first = ledger.Reserve(3, 100, 5e9);
    EXPECT_EQ(ledger.outstanding(3), (Outstanding{.requests = 1, .tokens = 100, .flops = 5e9}));
    Ledger::Reservation second = std::move(first);
    first.Release();  // NOLINT(bugprone-use-after-move): is what is tested
    EXPECT_EQ(ledger.outstanding(3).requests, 1);
    second = ledger.Reserve(4, 7, 1e9);  // gives the first back
    EXPECT_EQ(ledger.outstanding(3), Outstanding());
    second.Correct(3e9);
    EXPECT_EQ(ledger.outstanding(4).flops, 3e9);
    second.Release();
    second.Correct(9e9);
    EXPECT_EQ(ledger.outstanding(4), Outstanding());
  }
  EXPECT_EQ(ledger.outstanding(3), Outstanding());
  EXPECT_EQ(ledger.outstanding(4), Outstanding());
}

TEST(Ledger, NoNumberThatIsReportedSpoilsTheSum) {
  Ledger ledger;
  {
    Ledger::Reservation one = ledger.Reserve(0, 1, 1e300);
    Ledger::Reservation other = ledger.Reserve(0, 1, 1e300);
    EXPECT_GT(ledger.outstanding(0).flops, 1e17);
    one.Correct(std::numeric_limits<double>::quiet_NaN());
    other.Correct(-std::numeric_limits<double>::infinity());
    EXPECT_EQ(ledger.outstanding(0).flops, 0);
  }
  EXPECT_EQ(ledger.outstanding(0), Outstanding());
}

// Sums of doubles in this range would not: 0.1e9 is no sum of powers of two.
TEST(Ledger, ReturnsToExactlyZeroAfterAnyInterleaving) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Ledger ledger;
  const auto act = [&](uint32_t own_seed) {
    std::mt19937_64 random(own_seed);
    std::vector<Ledger::Reservation> open;
    for (int step = 0; step < 20'000; ++step) {
      const double flops = static_cast<double>(random() >> 8) / 3;
      if (open.empty() || random() % 3 != 0) {
        open.push_back(ledger.Reserve(static_cast<RankSlot>(random() % 4), step, flops));
        continue;
      }
      Ledger::Reservation& one = open[random() % open.size()];
      one.Correct(flops);
      if (random() % 2 == 0) {
        std::swap(one, open.back());
        open.pop_back();
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (uint32_t thread = 0; thread < 4; ++thread) {
      threads.emplace_back(act, seed + thread);
    }
  }
  for (RankSlot slot = 0; slot < 4; ++slot) {
    EXPECT_EQ(ledger.outstanding(slot), Outstanding());
  }
}

}  // namespace
}  // namespace zp::routing
