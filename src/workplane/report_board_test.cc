#include "workplane/report_board.h"

#include <algorithm>
#include <map>
#include <set>

#include "gtest/gtest.h"
#include "workplane/testing.h"

namespace zp::workplane {
namespace {

using protocol::BlockHash;
using protocol::RankReport;

// What a gateway makes of the reports.
class Image {
 public:
  void Add(const std::vector<ReportBoard::Report>& reports) {
    for (const auto& [rank, report] : reports) {
      std::set<uint64_t>& held = held_[rank];
      EXPECT_TRUE(report.cache.is_cleared || numbers_.contains(rank)) << "the first clears";
      numbers_[rank] = report.flops_per_s;
      if (report.cache.is_cleared) {
        held.clear();
      }
      for (const BlockHash& block : report.cache.removed) {
        held.erase(block.high);
      }
      for (const BlockHash& block : report.cache.stored) {
        held.insert(block.high);
      }
    }
  }
  const std::set<uint64_t>& held(int32_t rank) { return held_[rank]; }
  double number(int32_t rank) { return numbers_[rank]; }

 private:
  std::map<int32_t, std::set<uint64_t>> held_;
  std::map<int32_t, double> numbers_;
};

size_t BlockCount(const std::vector<ReportBoard::Report>& reports) {
  size_t count = 0;
  for (const auto& [rank, report] : reports) {
    count += report.cache.stored.size() + report.cache.removed.size();
  }
  return count;
}

void TakeAll(ReportBoard::Reader& reader, Image& image, size_t max_blocks) {
  while (true) {
    const std::vector<ReportBoard::Report> taken = reader.Take(max_blocks);
    if (taken.empty()) {
      return;
    }
    image.Add(taken);
  }
}

TEST(ReportBoard, WhoComesLateLearnsWhatIsHeldAndThenWhatChanges) {
  ReportBoard board(2);
  board.OnReport(0, ReportOf(5, {}, {Block(1), Block(2)}));
  int news_count = 0;
  const auto reader = board.Subscribe([&] { ++news_count; });
  std::vector<ReportBoard::Report> taken = reader->Take(100);
  ASSERT_EQ(taken.size(), 1u) << "rank 1 has said nothing";
  EXPECT_EQ(taken[0].rank, 0);
  EXPECT_TRUE(taken[0].report.cache.is_cleared);
  EXPECT_EQ(taken[0].report.cache.stored.size(), 2u);
  EXPECT_EQ(taken[0].report.flops_per_s, 5);
  EXPECT_TRUE(reader->Take(100).empty());
  board.OnReport(0, ReportOf(5, {Block(1)}));
  EXPECT_EQ(news_count, 1);
  taken = reader->Take(100);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_FALSE(taken[0].report.cache.is_cleared);
  EXPECT_EQ(taken[0].report.cache.removed, std::vector{Block(1)});
}

TEST(ReportBoard, NumbersAloneDoNotPileUp) {
  ReportBoard board(1);
  const auto reader = board.Subscribe([] {});
  board.OnReport(0, {});
  reader->Take(100);
  for (int pass = 1; pass <= 1000; ++pass) {
    board.OnReport(0, ReportOf(pass));
  }
  const std::vector<ReportBoard::Report> taken = reader->Take(100);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].report.flops_per_s, 1000);
}

TEST(ReportBoard, AReaderThatFallsBehindGetsTheMirrorInstead) {
  ReportBoard board(1, /*max_pending_blocks=*/10);
  const auto reader = board.Subscribe([] {});
  board.OnReport(0, {});
  reader->Take(100);
  for (uint64_t number = 0; number < 1000; ++number) {  // a cache of one block
    board.OnReport(0, ReportOf(0, {Block(number)}, {Block(number + 1)}));
  }
  const std::vector<ReportBoard::Report> taken = reader->Take(100'000);
  EXPECT_LE(BlockCount(taken), 12u);
  Image image;
  image.Add(taken);
  EXPECT_EQ(image.held(0), std::set<uint64_t>{1000});
}

// Any mix of reports and takes, of any sizes: in the end the image is what is held.
TEST(ReportBoard, EveryReaderEndsWithWhatIsHeld) {
  constexpr int32_t kRanks = 3;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    ReportBoard board(kRanks, Draw(random, 0, 50));
    std::vector<std::set<uint64_t>> held(kRanks);
    std::vector<std::unique_ptr<ReportBoard::Reader>> readers;
    std::vector<Image> images;
    std::vector<double> numbers(kRanks, 0);
    std::vector<bool> has_reported(kRanks);
    for (int step = 0; step < 200; ++step) {
      const int64_t what = Draw(random, 0, 9);
      if (what == 0 && readers.size() < 4) {
        readers.push_back(board.Subscribe([] {}));
        images.emplace_back();
      } else if (what < 5 && !readers.empty()) {
        const size_t reader = random() % readers.size();
        const size_t max_blocks = Draw(random, 1, 20);
        const auto taken = readers[reader]->Take(max_blocks);
        for (const auto& [rank, report] : taken) {
          EXPECT_LE(report.cache.stored.size() + report.cache.removed.size(), max_blocks);
        }
        images[reader].Add(taken);
      } else {
        const auto rank = static_cast<int32_t>(random() % kRanks);
        RankReport report = ReportOf(step);
        if (Draw(random, 0, 30) == 0) {
          report.cache.is_cleared = true;
          held[rank].clear();
        }
        for (int64_t i = Draw(random, 0, 5); i > 0 && !held[rank].empty(); --i) {
          const uint64_t number = *held[rank].begin();
          report.cache.removed.push_back(Block(number));
          held[rank].erase(number);
        }
        for (int64_t i = Draw(random, 0, 12); i > 0; --i) {
          const uint64_t number = Draw(random, 0, 100);  // also what was just removed
          if (held[rank].insert(number).second) {
            report.cache.stored.push_back(Block(number));
          }
        }
        board.OnReport(rank, report);
        numbers[rank] = report.flops_per_s;
        has_reported[rank] = true;
      }
    }
    for (size_t reader = 0; reader < readers.size(); ++reader) {
      TakeAll(*readers[reader], images[reader], Draw(random, 1, 20));
      for (int32_t rank = 0; rank < kRanks; ++rank) {
        EXPECT_EQ(images[reader].held(rank), held[rank]);
        EXPECT_EQ(images[reader].number(rank), numbers[rank]);
      }
    }
  }
}

}  // namespace
}  // namespace zp::workplane
