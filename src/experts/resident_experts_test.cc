#include "experts/resident_experts.h"

#include <utility>

#include "gtest/gtest.h"

namespace zp::experts {
namespace {

TEST(ResidentExperts, HandsOutTheBlobsOfALayer) {
  ResidentExperts experts({true, false, true}, 3, 128);
  experts.Blob(2, 1)[0] = std::byte{42};
  const GatherTicket ticket = experts.StartGather(2);
  const auto blobs = experts.Wait(ticket);
  ASSERT_EQ(blobs.size(), 3u);
  EXPECT_EQ(blobs[1][0], std::byte{42});
  EXPECT_EQ(blobs[1], blobs[0] + 128);
}

TEST(ResidentExperts, AnEndedTicketFreesItsSlot) {
  ResidentExperts experts({true, true}, 2, 64);
  for (int round = 0; round < 5; ++round) {
    GatherTicket current = experts.StartGather(0);
    GatherTicket next = experts.StartGather(1);
    current = std::move(next);
    EXPECT_EQ(current.layer(), 1);
  }
}

TEST(ResidentExpertsDeathTest, TooManyTicketsIsABug) {
  ResidentExperts experts({true}, 1, 64);
  const GatherTicket first = experts.StartGather(0);
  const GatherTicket second = experts.StartGather(0);
  EXPECT_DEATH(experts.StartGather(0), "more than 2 tickets");
}

}  // namespace
}  // namespace zp::experts
