// Decides which rank gets a work: prefix index, ledger, saturation, admission and policy behind one
// door, for all endpoints.
//
// Knows no sinks, no threads and no clock: `now` is passed in, so that the same code decides in
// real and in virtual time. WorkRouter is this with ranks behind it.
//
//   const WorkProfile profile = router.Profile(work);         // hashes the work, once
//   ZP_ASSIGN_OR_RETURN(Placement placement, router.Decide(profile, now));
//   ... the rank placement.rank() computes it ...
//   placement.Complete(result.usage);                         // or let it go out of scope
//
// A work goes to one rank, whatever its size: its sequences share prefixes and are answered
// together. A rank splits what is too large for one pass.
//
// The time of a decision grows with the ranks and with the blocks of the work, not with the works
// in flight nor with the blocks that are indexed.
//
// Thread safety: everything from any thread; one lock, never held while anything is called back.
// Ownership: the router must outlive its placements.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "protocol/block_chain.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "routing/admission.h"
#include "routing/held_prefixes.h"
#include "routing/ledger.h"
#include "routing/prefix_index.h"
#include "routing/rank_slot.h"
#include "routing/routing_policy.h"
#include "routing/saturation.h"
#include "routing/work_profile.h"

namespace zp::routing {

struct RouterOptions {
  // Of the names of blocks: the ranks' caches must use the same.
  uint64_t block_key = 0;
  SaturationOptions saturation = {};
  AdmissionOptions admission = {};
};

struct DecideOptions {
  // A work that was accepted before is not refused for want of time.
  bool is_admitted = false;
  // Ranks that refused it or were lost.
  std::span<const RankId> excluded = {};
  // Its rank was lost: an overdue one is better than none.
  bool is_resent = false;
};

class RequestRouter;

// A work's place at a rank: what it has reserved there and the blocks it is expected to bring.
// Move-only; gives both back when it is completed, released or destroyed, once.
class Placement {
 public:
  Placement() = default;
  Placement(Placement&& other) noexcept = default;
  Placement& operator=(Placement&& other) noexcept;
  ~Placement() { Release(); }

  RankId rank() const { return rank_; }
  Reason reason() const { return reason_; }
  // Predicted when it was placed.
  double flops() const { return flops_; }
  int64_t held_tokens() const { return held_tokens_; }

  // The rank says how much of the work it still has to compute.
  void Correct(double remaining_flops) { reservation_.Correct(remaining_flops); }
  void Release();

 private:
  friend class RequestRouter;

  RequestRouter* router_ = nullptr;
  RankId rank_ = 0;
  RankSlot slot_ = 0;
  Reason reason_ = Reason::kLeast;
  double flops_ = 0;
  int64_t held_tokens_ = 0;
  Ledger::Reservation reservation_;
  std::vector<protocol::BlockHash> expected_;
};

class RequestRouter {
 public:
  RequestRouter(const spec::ModelSpec& spec,
                const RouterOptions& options,
                std::unique_ptr<RoutingPolicy> policy);
  RequestRouter(const RequestRouter&) = delete;
  RequestRouter& operator=(const RequestRouter&) = delete;

  // AlreadyExists for an id that is there, ResourceExhausted beyond kMaxRanks.
  absl::Status AddRank(RankId rank);
  // Gets no more works, and what it held is forgotten. Its placements stay valid.
  void RemoveRank(RankId rank);
  // Reports of ranks that are not there are ignored.
  // After each pass of the rank, before its works are released.
  void OnReport(RankId rank,
                const protocol::RankReport& report,
                std::chrono::steady_clock::time_point now);

  // REQUIRES: as protocol::CostOf.
  WorkProfile Profile(const protocol::Work& work) const;

  // Whether Decide would refuse a work that came now, however little it cost. OK where that cannot
  // be said without waiting.
  absl::Status CheckRoom(std::optional<std::chrono::steady_clock::time_point> deadline,
                         std::chrono::steady_clock::time_point now);

  // Chooses and reserves in one step. ResourceExhausted: as Admit. Unavailable: no rank is left.
  absl::StatusOr<Placement> Decide(const WorkProfile& work,
                                   std::chrono::steady_clock::time_point now,
                                   const DecideOptions& options = {});

  // Zero for a rank that is not there.
  Outstanding outstanding(RankId rank) const;
  std::vector<RankId> ranks() const;
  int64_t indexed_block_count() const;

 private:
  friend class Placement;

  struct Seat {
    RankId rank = 0;
    bool is_taken = false;
    // The pass that runs there: when it began, and what has come since, which is not in it.
    std::chrono::steady_clock::time_point pass_begin = {};
    double waiting_flops = 0;
    double pass_begin_flops = 0;  // outstanding then
    double busy_share = 0;        // of the last seconds it had work; a rank that is new had none
    std::optional<std::chrono::steady_clock::time_point> watched = {};  // when that was looked at
  };

  void DropExpected(RankSlot slot, std::span<const protocol::BlockHash> blocks);
  // The rest with mutex_ held.
  RankSlot FreeSlot();
  void WatchRanks(std::chrono::steady_clock::time_point now);
  void Watch(RankSlot slot, std::chrono::steady_clock::time_point now);
  void LookAtRanks(const WorkProfile& work,
                   const DecideOptions& options,
                   std::chrono::steady_clock::time_point now);
  Placement Place(const WorkProfile& work,
                  const RankView& rank,
                  Reason reason,
                  std::chrono::steady_clock::time_point now);

  const RouterOptions options_;
  const spec::ModelSpec spec_;
  const protocol::BlockHasher hasher_;
  const TokenPrice price_;

  Ledger ledger_;  // its reservations come back without the lock

  mutable std::mutex mutex_;
  // All below are guarded by mutex_.
  const std::unique_ptr<RoutingPolicy> policy_;
  PrefixIndex index_;
  Saturation saturation_;
  std::vector<Seat> seats_;  // by slot
  absl::flat_hash_map<RankId, RankSlot> slots_;
  std::chrono::steady_clock::time_point last_pass_end_ = {};  // of any rank
  // Kept between decisions, so that none allocates.
  HeldPrefixes held_;
  std::vector<RankView> views_;
};

}  // namespace zp::routing
