// What the ranks of this process have reported, for gateways that come at any time: one that comes
// late learns first what the caches hold, then what changes.
//
// It keeps the names of the blocks that each rank holds (a mirror of the reports, nothing of the
// caches themselves) and, for each reader, the reports that it has not taken. A reader that is slow
// costs no more memory than the mirror: what waits for it is replaced by the mirror's whole
// content.
//
// Thread safety: any thread. Ownership: readers must not outlive the board.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "protocol/rank_report.h"

namespace zp::workplane {

class ReportBoard {
 public:
  struct Report {
    int32_t rank = 0;
    protocol::RankReport report;
  };

  class Reader {
   public:
    // The oldest reports that were not taken, of all ranks, with at most about `max_blocks` blocks
    // together; a report of more comes in pieces. Empty: nothing new. The first of each rank clears
    // and brings what the rank holds.
    std::vector<Report> Take(size_t max_blocks);
    ~Reader();

   private:
    friend class ReportBoard;
    struct Queue {  // of one rank
      bool needs_mirror = true;
      size_t block_count = 0;
      std::deque<protocol::RankReport> reports;
    };

    Reader(ReportBoard& board, std::function<void()> on_news);
    void Add(int32_t rank, const protocol::RankReport& report);
    void TakeMirror(int32_t rank, size_t max_blocks);

    ReportBoard& board_;
    const std::function<void()> on_news_;
    std::vector<Queue> queues_;  // [rank]; under the board's lock
  };

  // A reader that has fallen so many blocks behind, and further than what the rank holds, gets the
  // mirror instead.
  explicit ReportBoard(int32_t rank_count, size_t max_pending_blocks = size_t{16} << 10);

  // A protocol::OnRankReport of each rank.
  void OnReport(int32_t rank, const protocol::RankReport& report);

  // `on_news`: there may be something to take; called under the board's lock, must only signal.
  std::unique_ptr<Reader> Subscribe(std::function<void()> on_news);

  int32_t rank_count() const { return static_cast<int32_t>(ranks_.size()); }

 private:
  struct Rank {
    bool has_reported = false;
    protocol::RankReport latest;  // the numbers; no cache events
    absl::flat_hash_set<protocol::BlockHash> held;
  };

  const size_t max_pending_blocks_;
  std::mutex mutex_;  // of all below
  std::vector<Rank> ranks_;
  std::vector<Reader*> readers_;
};

}  // namespace zp::workplane
