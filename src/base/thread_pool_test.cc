#include "base/thread_pool.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace zp::base {
namespace {

TEST(ThreadPool, RunsEveryIndexExactlyOnce) {
  for (const int thread_count : {1, 2, 5}) {
    ThreadPool pool(thread_count);
    for (const int64_t count : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> runs(count);
      pool.ParallelFor(count, [&](int64_t index, int worker) {
        ASSERT_LT(worker, thread_count);
        runs[index].fetch_add(1);
      });
      for (const auto& run : runs) {
        EXPECT_EQ(run.load(), 1);
      }
    }
  }
}

TEST(ThreadPool, SurvivesManyShortRounds) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 500; ++round) {
    pool.ParallelFor(4, [&](int64_t index, int) { sum.fetch_add(index); });
  }
  EXPECT_EQ(sum.load(), 500 * 6);
}

}  // namespace
}  // namespace zp::base
