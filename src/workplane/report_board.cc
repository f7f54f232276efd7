#include "workplane/report_board.h"

#include <algorithm>

#include "base/check.h"

namespace zp::workplane {
namespace {

using protocol::BlockHash;
using protocol::CacheEvents;
using protocol::RankReport;

size_t BlockCount(const RankReport& report) {
  return report.cache.removed.size() + report.cache.stored.size();
}

// The next `count` of `blocks`, from `begin` on; moves `begin`.
std::vector<BlockHash> Cut(const std::vector<BlockHash>& blocks, size_t& begin, size_t count) {
  const size_t end = std::min(blocks.size(), begin + count);
  std::vector<BlockHash> cut(blocks.begin() + static_cast<ptrdiff_t>(begin),
                             blocks.begin() + static_cast<ptrdiff_t>(end));
  begin = end;
  return cut;
}

// Reports of at most `max_blocks` blocks which together say the same, in the same order.
std::vector<RankReport> InPieces(RankReport report, size_t max_blocks) {
  std::vector<RankReport> pieces;
  if (BlockCount(report) <= max_blocks) {
    pieces.push_back(std::move(report));
    return pieces;
  }
  const CacheEvents events = std::move(report.cache);
  report.cache = {};
  size_t removed = 0;
  size_t stored = 0;
  while (removed < events.removed.size() || stored < events.stored.size()) {
    RankReport& piece = pieces.emplace_back(report);
    piece.cache.is_cleared = events.is_cleared && pieces.size() == 1;
    piece.cache.removed = Cut(events.removed, removed, max_blocks);
    piece.cache.stored = Cut(events.stored, stored, max_blocks - piece.cache.removed.size());
  }
  return pieces;
}

}  // namespace

ReportBoard::ReportBoard(int32_t rank_count, size_t max_pending_blocks)
    : max_pending_blocks_(max_pending_blocks), ranks_(rank_count) {}

void ReportBoard::OnReport(int32_t rank, const RankReport& report) {
  ZP_CHECK(rank >= 0 && rank < rank_count()) << rank;
  const std::lock_guard lock(mutex_);
  Rank& state = ranks_[rank];
  state.has_reported = true;
  state.latest = {.flops_per_s = report.flops_per_s,
                  .compute_flops_per_s = report.compute_flops_per_s,
                  .saturation_flops = report.saturation_flops,
                  .saturation_tokens = report.saturation_tokens,
                  .cache = {}};
  Apply(report.cache, state.held);
  for (Reader* reader : readers_) {
    reader->Add(rank, report);
    reader->on_news_();
  }
}

std::unique_ptr<ReportBoard::Reader> ReportBoard::Subscribe(std::function<void()> on_news) {
  std::unique_ptr<Reader> reader(new Reader(*this, std::move(on_news)));
  const std::lock_guard lock(mutex_);
  readers_.push_back(reader.get());
  return reader;
}

ReportBoard::Reader::Reader(ReportBoard& board, std::function<void()> on_news)
    : board_(board), on_news_(std::move(on_news)), queues_(board.ranks_.size()) {}

ReportBoard::Reader::~Reader() {
  const std::lock_guard lock(board_.mutex_);
  std::erase(board_.readers_, this);
}

// REQUIRES: the board's lock; the mirror has it already.
void ReportBoard::Reader::Add(int32_t rank, const RankReport& report) {
  Queue& queue = queues_[rank];
  if (queue.needs_mirror) {
    return;
  }
  if (report.cache.empty() && !queue.reports.empty()) {
    // Only numbers, and only the latest count.
    CacheEvents events = std::move(queue.reports.back().cache);
    queue.reports.back() = report;
    queue.reports.back().cache = std::move(events);
    return;
  }
  queue.reports.push_back(report);
  queue.block_count += BlockCount(report);
  if (queue.block_count > board_.max_pending_blocks_ + board_.ranks_[rank].held.size()) {
    queue = {.needs_mirror = true, .block_count = 0, .reports = {}};
  }
}

// REQUIRES: the board's lock.
void ReportBoard::Reader::TakeMirror(int32_t rank, size_t max_blocks) {
  Queue& queue = queues_[rank];
  const Rank& state = board_.ranks_[rank];
  RankReport report = state.latest;
  report.cache.is_cleared = true;
  report.cache.stored.assign(state.held.begin(), state.held.end());
  queue = {.needs_mirror = false, .block_count = state.held.size(), .reports = {}};
  for (RankReport& piece : InPieces(std::move(report), max_blocks)) {
    queue.reports.push_back(std::move(piece));
  }
}

std::vector<ReportBoard::Report> ReportBoard::Reader::Take(size_t max_blocks) {
  std::vector<Report> taken;
  size_t taken_blocks = 0;
  const std::lock_guard lock(board_.mutex_);
  for (size_t i = 0; i < queues_.size(); ++i) {
    const auto rank = static_cast<int32_t>(i);
    Queue& queue = queues_[i];
    if (queue.needs_mirror && board_.ranks_[i].has_reported && taken_blocks < max_blocks) {
      TakeMirror(rank, max_blocks);
    }
    while (!queue.reports.empty() && taken_blocks < max_blocks) {
      RankReport report = std::move(queue.reports.front());
      queue.reports.pop_front();
      const size_t blocks = BlockCount(report);
      if (blocks > max_blocks) {
        std::vector<RankReport> pieces = InPieces(std::move(report), max_blocks);
        report = std::move(pieces.front());
        queue.reports.insert(queue.reports.begin(),
                             std::make_move_iterator(pieces.begin() + 1),
                             std::make_move_iterator(pieces.end()));
      }
      queue.block_count -= BlockCount(report);
      taken_blocks += BlockCount(report);
      taken.push_back({.rank = rank, .report = std::move(report)});
    }
  }
  return taken;
}

}  // namespace zp::workplane
