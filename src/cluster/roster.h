// Who sits on which host slot: the coordinator's state, without network and without a clock.
//
// Slot 0 is the coordinator's own host; it has no session and never lapses.
//
// Thread safety: none; the coordinator's lock is around it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "cluster/membership.h"

namespace zp::cluster {

// What a worker shows with each heartbeat: its slot, and that it is the one who got it.
struct Session {
  int32_t slot = 0;
  std::string secret = {};
};

class Roster {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Roster(int32_t host_slots, std::chrono::milliseconds member_timeout);

  // Gives the wanted slot or, without one, the lowest free. The epoch ends up above `known_epoch`,
  // which a coordinator that was started anew learns from the workers that were there before.
  // Errors: ResourceExhausted when none is free, AlreadyExists when the wanted one is not,
  // InvalidArgument for a slot that no worker can have or an epoch over the limit; those of
  // CheckOffer.
  absl::StatusOr<Session> Admit(std::optional<int32_t> wanted_slot,
                                uint64_t known_epoch,
                                const std::optional<HostOffer>& offer,
                                Time now);

  // A worker is alive; with an offer, its memory is readable from now on.
  // Errors: NotFound for a session that there is not (any more).
  absl::Status Hear(const Session& session, const std::optional<HostOffer>& offer, Time now);

  absl::Status Remove(const Session& session);

  // Errors: those of CheckOffer.
  absl::Status SetSelf(const HostOffer& offer);

  // The slots of those who were not heard in time.
  std::vector<int32_t> RemoveLapsed(Time now);
  // When the next one lapses if it is not heard; Time::max() with nobody here.
  Time NextLapse() const;

  bool Knows(const Session& session) const;
  uint64_t epoch() const { return epoch_; }
  Membership membership() const;

 private:
  struct Seat {
    bool taken = false;
    std::string secret = {};
    std::optional<HostOffer> offer = {};
    Time heard = {};
  };

  void Publish(Seat& seat, const HostOffer& offer);
  void Free(Seat& seat);

  std::chrono::milliseconds member_timeout_;
  std::vector<Seat> seats_;  // [slot]
  uint64_t epoch_ = 1;
};

}  // namespace zp::cluster
