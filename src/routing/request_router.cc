#include "routing/request_router.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "fmt/format.h"

namespace zp::routing {
namespace {

// How far back a rank's busy share looks: a few passes of any machine.
constexpr double kBusyMemorySeconds = 4;
// After so long without a pass, while others report theirs, nobody knows how fast a rank is.
constexpr std::chrono::seconds kMeasurementLifetime{10};

absl::Status NoRank() { return absl::UnavailableError("no rank is there to take the request"); }

// Rendezvous hashing: each prefix orders the ranks in its own way, the same at every gateway.
uint64_t TieBreak(const protocol::BlockHash& affinity, RankId rank) {
  const struct {
    protocol::BlockHash affinity;
    uint64_t rank;
  } key = {affinity, static_cast<uint64_t>(rank)};
  return base::KeyedHash(/*key=*/0, std::as_bytes(std::span(&key, 1))).low;
}

}  // namespace

Placement& Placement::operator=(Placement&& other) noexcept {
  if (this != &other) {
    Release();
    router_ = other.router_;
    rank_ = other.rank_;
    slot_ = other.slot_;
    reason_ = other.reason_;
    flops_ = other.flops_;
    held_tokens_ = other.held_tokens_;
    reservation_ = std::move(other.reservation_);
    expected_ = std::exchange(other.expected_, {});
  }
  return *this;
}

// What was moved from has neither.
void Placement::Release() {
  if (!expected_.empty()) {
    router_->DropExpected(slot_, expected_);
    expected_.clear();
  }
  reservation_.Release();  // last: then the slot may go to another rank
}

RequestRouter::RequestRouter(const spec::ModelSpec& spec,
                             const RouterOptions& options,
                             std::unique_ptr<RoutingPolicy> policy)
    : options_(options),
      spec_(spec),
      hasher_(options.block_key),
      price_(spec),
      policy_(std::move(policy)),
      saturation_(options.saturation) {}

absl::Status RequestRouter::AddRank(RankId rank) {
  const std::lock_guard lock(mutex_);
  if (slots_.contains(rank)) {
    return absl::AlreadyExistsError(fmt::format("rank {} is there already", rank));
  }
  const RankSlot slot = FreeSlot();
  if (slot == kMaxRanks) {
    return absl::ResourceExhaustedError(fmt::format("there are {} ranks already", kMaxRanks));
  }
  seats_[slot] = {.rank = rank, .is_taken = true};
  slots_[rank] = slot;
  return absl::OkStatus();
}

// kMaxRanks if there is none.
RankSlot RequestRouter::FreeSlot() {
  for (RankSlot slot = 0; slot < std::ssize(seats_); ++slot) {
    if (!seats_[slot].is_taken && ledger_.outstanding(slot).requests == 0) {
      return slot;
    }
  }
  if (seats_.size() < kMaxRanks) {
    seats_.emplace_back();
    return static_cast<RankSlot>(seats_.size()) - 1;
  }
  return kMaxRanks;
}

void RequestRouter::RemoveRank(RankId rank) {
  const std::lock_guard lock(mutex_);
  const auto found = slots_.find(rank);
  if (found == slots_.end()) {
    return;
  }
  const RankSlot slot = found->second;
  slots_.erase(found);
  seats_[slot] = {};
  index_.Clear(slot);
  saturation_.Forget(slot);
}

// A rank begins its next pass where the last one ends.
void RequestRouter::OnReport(RankId rank,
                             const protocol::RankReport& report,
                             std::chrono::steady_clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (const auto found = slots_.find(rank); found != slots_.end()) {
    Watch(found->second, now);
    saturation_.OnReport(found->second, report);
    index_.Apply(found->second, report.cache);
    seats_[found->second].pass_begin = now;
    seats_[found->second].waiting_flops = 0;
    seats_[found->second].pass_begin_flops = ledger_.outstanding(found->second).flops;
    last_pass_end_ = now;
  }
}

WorkProfile RequestRouter::Profile(const protocol::Work& work) const {
  return ProfileOf(spec_, hasher_, work);
}

// A work without sequences costs nothing anywhere, and no work less. Who asks moves bytes for all
// clients, so he waits for nobody.
absl::Status RequestRouter::CheckRoom(std::optional<std::chrono::steady_clock::time_point> deadline,
                                      std::chrono::steady_clock::time_point now) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) {
    return absl::OkStatus();
  }
  WatchRanks(now);
  LookAtRanks(WorkProfile(), {}, now);
  return views_.empty() ? NoRank() : Admit(options_.admission, views_, now, deadline);
}

absl::StatusOr<Placement> RequestRouter::Decide(const WorkProfile& work,
                                                std::chrono::steady_clock::time_point now,
                                                const DecideOptions& options) {
  const std::lock_guard lock(mutex_);
  WatchRanks(now);
  LookAtRanks(work, options, now);
  if (views_.empty()) {
    return NoRank();
  }
  if (!options.is_admitted) {
    ZP_RETURN_IF_ERROR(Admit(options_.admission, views_, now, work.deadline));
  }
  const WorkView view = {.prompt_tokens = work.prompt_tokens, .flops = work.flops};
  const Choice choice = policy_->Choose(view, views_);
  ZP_CHECK(choice.index < views_.size()) << choice.index;
  return Place(
      work, views_[choice.index], options.excluded.empty() ? choice.reason : Reason::kRetry, now);
}

// What time does to what is known of ranks: whether each has work, and how fast those are that have
// none. A rank that looks slow gets no work, so that it would look slow for ever: now and then one
// is tried.
void RequestRouter::WatchRanks(std::chrono::steady_clock::time_point now) {
  const bool others_report = now - last_pass_end_ < kMeasurementLifetime;
  for (RankSlot slot = 0; slot < std::ssize(seats_); ++slot) {
    Watch(slot, now);
    const bool is_busy = ledger_.outstanding(slot).requests > 0;
    if (!is_busy && others_report && now - seats_[slot].pass_begin > kMeasurementLifetime) {
      saturation_.Doubt(slot);
    }
  }
}

// Whether the rank has work, weighed by the time since it was last looked at. Before the end of a
// pass is known: who asks anew when he is answered would find it idle each time.
void RequestRouter::Watch(RankSlot slot, std::chrono::steady_clock::time_point now) {
  Seat& seat = seats_[slot];
  const bool is_busy = ledger_.outstanding(slot).requests > 0;
  const double elapsed_s = std::chrono::duration<double>(now - seat.watched.value_or(now)).count();
  const double kept = std::exp(-std::max(0.0, elapsed_s) / kBusyMemorySeconds);
  seat.busy_share = kept * seat.busy_share + (is_busy ? 1 - kept : 0);
  seat.watched = now;
}

void RequestRouter::LookAtRanks(const WorkProfile& work,
                                const DecideOptions& options,
                                std::chrono::steady_clock::time_point now) {
  held_.Look(index_, price_, work, static_cast<int32_t>(seats_.size()));
  views_.clear();
  bool is_other_well = false;  // excluded or not: who is full has no room, and is well
  for (RankSlot slot = 0; slot < std::ssize(seats_); ++slot) {
    const Seat& seat = seats_[slot];
    const RankId rank = seat.rank;
    if (!seat.is_taken) {
      continue;
    }
    views_.push_back(
        {.id = rank,
         .slot = slot,
         .outstanding = ledger_.outstanding(slot),
         .waiting_flops = seat.waiting_flops,
         .pass_elapsed_s = std::chrono::duration<double>(now - seat.pass_begin).count(),
         .pass_begin_flops = seat.pass_begin_flops,
         .busy_share = seat.busy_share,
         .saturation_flops = saturation_.saturation_flops(slot),
         .flops_per_s = saturation_.flops_per_s(slot),
         .compute_flops_per_s = saturation_.compute_flops_per_s(slot),
         .held_tokens = held_.tokens(slot),
         .cost_flops = std::max(0.0, work.flops - held_.flops(slot)),
         .tie_break = TieBreak(work.affinity, rank)});
    is_other_well |= !IsOverdue(views_.back());
    if (std::ranges::find(options.excluded, rank) != options.excluded.end()) {
      views_.pop_back();
    }
  }
  // Where all are overdue, one is as good as the other.
  const bool is_one_left = !std::ranges::all_of(views_, IsOverdue);
  if (is_one_left || (is_other_well && !options.is_resent)) {
    std::erase_if(views_, IsOverdue);
  }
}

Placement RequestRouter::Place(const WorkProfile& work,
                               const RankView& rank,
                               Reason reason,
                               std::chrono::steady_clock::time_point now) {
  Seat& seat = seats_[rank.slot];
  if (rank.outstanding.requests == 0) {
    seat.pass_begin = now;  // with this work
    seat.waiting_flops = 0;
    seat.pass_begin_flops = rank.cost_flops;
    saturation_.Believe(rank.slot);  // one work is enough to measure it anew
  } else {
    seat.waiting_flops += rank.cost_flops;
  }
  Placement placement;
  placement.router_ = this;
  placement.rank_ = rank.id;
  placement.slot_ = rank.slot;
  placement.reason_ = reason;
  placement.flops_ = rank.cost_flops;
  placement.held_tokens_ = rank.held_tokens;
  placement.reservation_ = ledger_.Reserve(rank.slot, work.prompt_tokens, rank.cost_flops);
  for (const protocol::BlockHash& block : work.blocks) {
    if (!index_.IsHeld(rank.slot, block)) {
      placement.expected_.push_back(block);
    }
  }
  index_.Expect(rank.slot, placement.expected_);
  return placement;
}

void RequestRouter::DropExpected(RankSlot slot, std::span<const protocol::BlockHash> blocks) {
  const std::lock_guard lock(mutex_);
  index_.DropExpected(slot, blocks);
}

Outstanding RequestRouter::outstanding(RankId rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = slots_.find(rank);
  return found == slots_.end() ? Outstanding() : ledger_.outstanding(found->second);
}

std::vector<RankId> RequestRouter::ranks() const {
  const std::lock_guard lock(mutex_);
  std::vector<RankId> ranks;
  for (const auto& [rank, slot] : slots_) {
    ranks.push_back(rank);
  }
  std::ranges::sort(ranks);
  return ranks;
}

int64_t RequestRouter::indexed_block_count() const {
  const std::lock_guard lock(mutex_);
  return index_.block_count();
}

}  // namespace zp::routing
