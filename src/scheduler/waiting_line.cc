#include "scheduler/waiting_line.h"

#include <algorithm>

#include "base/check.h"

namespace zp::scheduler {
namespace {

// Calls visit(block name, blocks) for each family of who begins with `blocks`.
template <typename Visit>
void VisitFamilies(const std::vector<TokenBlock>& blocks, Visit visit) {
  for (size_t count = 1; count <= blocks.size(); count *= 2) {
    visit(blocks[count - 1].name, count);
  }
}

}  // namespace

void WaitingLine::Enter(WaitingEntry& entry) {
  entry.place = {.priority = entry.work.priority,
                 .due = entry.admitted_flops + ageing_ * entry.remaining_flops,
                 .number = entry.number,
                 .entry = &entry};
  ZP_CHECK(line_.insert(entry.place).second) << entry.number;
  VisitFamilies(entry.part().blocks, [&](const protocol::BlockHash& family, size_t) {
    families_[family].insert(entry.place);
  });
}

void WaitingLine::Leave(WaitingEntry& entry) {
  ZP_CHECK(line_.erase(entry.place) == 1) << entry.number;
  VisitFamilies(entry.part().blocks, [&](const protocol::BlockHash& family, size_t) {
    const auto found = families_.find(family);
    found->second.erase(entry.place);
    if (found->second.empty()) {
      families_.erase(found);
    }
  });
}

Candidates::Candidates(const WaitingLine& line) : line_(line) { Push({}, /*is_first=*/true); }

void Candidates::Push(Candidate candidate, bool is_first) {
  const WaitingLine::Line* line = &line_.line_;
  if (candidate.is_family) {
    const auto found = line_.families_.find(candidate.family);
    if (found == line_.families_.end()) {
      return;
    }
    line = &found->second;
  }
  const auto next = is_first ? line->begin() : line->upper_bound(candidate.place);
  if (next == line->end()) {
    return;
  }
  candidate.place = *next;
  candidate.key = *next;
  candidate.key.due -=
      line_.ageing_ * std::min(candidate.shared_flops, next->entry->remaining_flops);
  heap_.push_back(candidate);
  std::push_heap(heap_.begin(), heap_.end());
}

WaitingEntry* Candidates::Next() {
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    const Candidate candidate = heap_.back();
    heap_.pop_back();
    Push(candidate, /*is_first=*/false);
    if (line_.Contains(candidate.place)) {  // else it has left since it was pushed
      last_key_ = candidate.key;
      return candidate.place.entry;
    }
  }
  return nullptr;
}

void Candidates::Call(const PartCost& part) {
  const double flops_per_token = part.flops / static_cast<double>(CountTokens(part.blocks));
  VisitFamilies(part.blocks, [&](const protocol::BlockHash& family, size_t block_count) {
    if (called_.insert(family).second) {
      const auto shared_tokens = static_cast<double>(block_count) * protocol::kBlockTokens;
      Push({.is_family = true, .family = family, .shared_flops = shared_tokens * flops_per_token},
           /*is_first=*/true);
    }
  });
}

}  // namespace zp::scheduler
