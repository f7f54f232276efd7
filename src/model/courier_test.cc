#include "model/courier.h"

#include <vector>

#include "gtest/gtest.h"

namespace zp::model {
namespace {

class CourierTest : public testing::TestWithParam<bool> {};

TEST_P(CourierTest, DoesTasksInTheirOrder) {
  std::vector<int> done;
  {
    Courier courier(GetParam());
    uint64_t last = 0;
    for (int task = 0; task < 100; ++task) {
      last = courier.Post([&done, task] {
        done.push_back(task);
        return absl::OkStatus();
      });
    }
    EXPECT_TRUE(courier.Await(last).ok());
    ASSERT_EQ(done.size(), 100);
    for (int task = 0; task < 100; ++task) {
      EXPECT_EQ(done[task], task);
    }
    courier.Post([&done] {
      done.push_back(100);
      return absl::OkStatus();
    });
  }
  EXPECT_EQ(done.size(), 101);  // what was handed over is done, awaited or not
}

TEST_P(CourierTest, DoesNothingAfterAFailureAndSaysWhatItWas) {
  Courier courier(GetParam());
  bool is_done = false;
  courier.Post([] { return absl::UnavailableError("rank 3 is lost"); });
  const uint64_t after = courier.Post([&is_done] {
    is_done = true;
    return absl::OkStatus();
  });
  EXPECT_EQ(courier.Await(after), absl::UnavailableError("rank 3 is lost"));
  EXPECT_FALSE(is_done);
  EXPECT_EQ(courier.Await(courier.Post([] { return absl::OkStatus(); })).code(),
            absl::StatusCode::kUnavailable);
}

INSTANTIATE_TEST_SUITE_P(Threads, CourierTest, testing::Bool(), [](const auto& info) {
  return info.param ? "OfItsOwn" : "OfTheCaller";
});

}  // namespace
}  // namespace zp::model
