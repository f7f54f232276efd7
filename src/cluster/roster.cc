#include "cluster/roster.h"

#include <algorithm>

#include "cluster/secret.h"
#include "fmt/format.h"

namespace zp::cluster {
namespace {

// Far from wrapping, and out of reach of a cluster that changes every microsecond.
constexpr uint64_t kMaxEpoch = uint64_t{1} << 62;

absl::Status CheckOffer(const std::optional<HostOffer>& offer) {
  return offer ? CheckOffer(*offer) : absl::OkStatus();
}

}  // namespace

Roster::Roster(int32_t host_slots, std::chrono::milliseconds member_timeout)
    : member_timeout_(member_timeout), seats_(host_slots) {
  seats_[0].taken = true;
}

absl::StatusOr<Session> Roster::Admit(std::optional<int32_t> wanted_slot,
                                      uint64_t known_epoch,
                                      const std::optional<HostOffer>& offer,
                                      Time now) {
  const auto slot_count = static_cast<int32_t>(seats_.size());
  if (wanted_slot && (*wanted_slot < 1 || *wanted_slot >= slot_count)) {
    return absl::InvalidArgumentError(
        fmt::format("slot {} is wanted; workers have slots 1 to {}", *wanted_slot, slot_count - 1));
  }
  if (known_epoch > kMaxEpoch) {
    return absl::InvalidArgumentError(
        fmt::format("known_epoch is {}, the limit is {}", known_epoch, kMaxEpoch));
  }
  ZP_RETURN_IF_ERROR(CheckOffer(offer));
  const auto is_free = [](const Seat& seat) { return !seat.taken; };
  const auto seat = wanted_slot ? seats_.begin() + *wanted_slot
                                : std::find_if(seats_.begin(), seats_.end(), is_free);
  if (seat == seats_.end()) {
    return absl::ResourceExhaustedError(
        fmt::format("the cluster is full: all its {} host slots are taken", slot_count));
  }
  if (seat->taken) {
    return absl::AlreadyExistsError(
        fmt::format("slot {} is wanted, and another worker has it", *wanted_slot));
  }
  ZP_ASSIGN_OR_RETURN(seat->secret, NewSessionSecret());
  seat->taken = true;
  seat->heard = now;
  epoch_ = known_epoch >= epoch_ ? known_epoch + 1 : epoch_;
  if (offer) {
    Publish(*seat, *offer);
  }
  return Session{.slot = static_cast<int32_t>(seat - seats_.begin()), .secret = seat->secret};
}

bool Roster::Knows(const Session& session) const {
  if (session.slot < 1 || session.slot >= static_cast<int32_t>(seats_.size())) {
    return false;
  }
  const Seat& seat = seats_[session.slot];
  return seat.taken && SameSecret(seat.secret, session.secret);
}

absl::Status Roster::Hear(const Session& session, const std::optional<HostOffer>& offer, Time now) {
  if (!Knows(session)) {
    return absl::NotFoundError("the session is not known");
  }
  ZP_RETURN_IF_ERROR(CheckOffer(offer));
  Seat& seat = seats_[session.slot];
  seat.heard = now;
  if (offer) {
    Publish(seat, *offer);
  }
  return absl::OkStatus();
}

absl::Status Roster::Remove(const Session& session) {
  if (!Knows(session)) {
    return absl::NotFoundError("the session is not known");
  }
  Free(seats_[session.slot]);
  return absl::OkStatus();
}

absl::Status Roster::SetSelf(const HostOffer& offer) {
  ZP_RETURN_IF_ERROR(CheckOffer(offer));
  Publish(seats_[0], offer);
  return absl::OkStatus();
}

std::vector<int32_t> Roster::RemoveLapsed(Time now) {
  std::vector<int32_t> lapsed;
  for (size_t slot = 1; slot < seats_.size(); ++slot) {
    if (seats_[slot].taken && seats_[slot].heard + member_timeout_ <= now) {
      Free(seats_[slot]);
      lapsed.push_back(static_cast<int32_t>(slot));
    }
  }
  return lapsed;
}

Roster::Time Roster::NextLapse() const {
  Time next = Time::max();
  for (size_t slot = 1; slot < seats_.size(); ++slot) {
    if (seats_[slot].taken) {
      next = std::min(next, seats_[slot].heard + member_timeout_);
    }
  }
  return next;
}

Membership Roster::membership() const {
  Membership membership = {.epoch = epoch_};
  for (size_t slot = 0; slot < seats_.size(); ++slot) {
    if (seats_[slot].offer) {
      membership.hosts.push_back(
          {.slot = static_cast<int32_t>(slot), .offer = *seats_[slot].offer});
    }
  }
  return membership;
}

void Roster::Publish(Seat& seat, const HostOffer& offer) {
  if (seat.offer != offer) {
    seat.offer = offer;
    ++epoch_;
  }
}

// Others have known of a host only once its memory was readable.
void Roster::Free(Seat& seat) {
  epoch_ += seat.offer.has_value() ? 1 : 0;
  seat = {};
}

}  // namespace zp::cluster
