#include "cluster/roster.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::cluster {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr milliseconds kTimeout{100};
constexpr Roster::Time kStart{};

Session Admit(Roster& roster, Roster::Time now = kStart) {
  return *roster.Admit(std::nullopt, 0, std::nullopt, now);
}

TEST(Roster, GivesTheLowestFreeSlotAndNeverItsOwn) {
  Roster roster(3, kTimeout);
  const Session first = Admit(roster);
  EXPECT_EQ(first.slot, 1);
  EXPECT_EQ(Admit(roster).slot, 2);
  EXPECT_EQ(roster.Admit(std::nullopt, 0, std::nullopt, kStart).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(roster.Remove(first).ok());
  EXPECT_EQ(Admit(roster).slot, 1);
}

TEST(Roster, AWorkerThatLoadsIsNoMemberYet) {
  Roster roster(2, kTimeout);
  const uint64_t before = roster.epoch();
  const Session session = Admit(roster);
  EXPECT_EQ(roster.epoch(), before);
  EXPECT_TRUE(roster.Hear(session, HostOffer{"memory"}, kStart).ok());
  EXPECT_EQ(roster.epoch(), before + 1);
  EXPECT_THAT(roster.membership().hosts, ElementsAre(MemberHost{1, {"memory"}}));
  EXPECT_TRUE(roster.Hear(session, HostOffer{"memory"}, kStart).ok());
  EXPECT_EQ(roster.epoch(), before + 1) << "nothing new";
}

TEST(Roster, RemovesWhoIsNotHeardInTime) {
  Roster roster(3, kTimeout);
  const Session silent = Admit(roster);
  const Session heard = Admit(roster);
  ASSERT_TRUE(roster.Hear(silent, HostOffer{"memory"}, kStart).ok());
  const uint64_t before = roster.epoch();
  ASSERT_TRUE(roster.Hear(heard, std::nullopt, kStart + milliseconds(50)).ok());
  EXPECT_EQ(roster.NextLapse(), kStart + kTimeout);
  EXPECT_THAT(roster.RemoveLapsed(kStart + milliseconds(99)), IsEmpty());
  EXPECT_THAT(roster.RemoveLapsed(kStart + kTimeout), ElementsAre(silent.slot));
  EXPECT_EQ(roster.epoch(), before + 1);
  EXPECT_TRUE(absl::IsNotFound(roster.Hear(silent, std::nullopt, kStart + kTimeout)));
  EXPECT_TRUE(roster.Knows(heard));
}

TEST(Roster, ASessionIsWorthNothingWithoutItsSecret) {
  Roster roster(2, kTimeout);
  Session session = Admit(roster);
  session.secret[0] ^= 1;
  EXPECT_TRUE(absl::IsNotFound(roster.Hear(session, HostOffer{"memory"}, kStart)));
  EXPECT_TRUE(absl::IsNotFound(roster.Remove(session)));
  EXPECT_FALSE(roster.Knows({.slot = 0, .secret = ""}));
  EXPECT_FALSE(roster.Knows({.slot = 2, .secret = ""}));
  EXPECT_FALSE(roster.Knows({.slot = -1, .secret = ""}));
}

TEST(Roster, TheEpochRisesAboveWhatAReturningWorkerKnows) {
  Roster roster(4, kTimeout);
  const auto session = roster.Admit(2, 57, HostOffer{"memory"}, kStart);
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(session->slot, 2);
  EXPECT_GT(roster.epoch(), 57u);
  EXPECT_TRUE(absl::IsAlreadyExists(roster.Admit(2, 57, HostOffer{"memory"}, kStart).status()));
}

TEST(Roster, RefusesWhatIsOverItsLimits) {
  Roster roster(2, kTimeout);
  const auto code = [&](std::optional<int32_t> slot, uint64_t epoch, const std::string& memory) {
    return roster.Admit(slot, epoch, HostOffer{memory}, kStart).status().code();
  };
  const std::string too_long(kMaxAdvertisementBytes + 1, 'a');
  EXPECT_EQ(code(0, 0, ""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(2, 0, ""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(-1, 0, ""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(1, ~uint64_t{0}, ""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(1, 0, too_long), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::IsInvalidArgument(roster.SetSelf({too_long})));
  EXPECT_EQ(code(1, 0, ""), absl::StatusCode::kOk) << "a refusal takes no slot";
}

}  // namespace
}  // namespace zp::cluster
