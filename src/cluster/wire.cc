#include "cluster/wire.h"

#include "fmt/format.h"

namespace zp::cluster {
namespace {

constexpr int32_t kMaxWindowSlots = 1024;

absl::Status CheckCount(const char* field, int32_t value, int32_t least, int32_t most) {
  if (value < least || value > most) {
    return absl::InvalidArgumentError(
        fmt::format("{} is {}; it must be {} to {}", field, value, least, most));
  }
  return absl::OkStatus();
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) {
    return grpc::Status::OK;
  }
  return {static_cast<grpc::StatusCode>(status.code()), base::MessageOf(status)};
}

absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

void ToWire(const Session& session, wire::Session& message) {
  message.set_slot(session.slot);
  message.set_secret(session.secret);
}

Session FromWire(const wire::Session& message) {
  return {.slot = static_cast<int32_t>(message.slot()), .secret = message.secret()};
}

void ToWire(const Membership& membership, wire::Members& message) {
  message.set_epoch(membership.epoch);
  for (const MemberHost& host : membership.hosts) {
    wire::Host& added = *message.add_hosts();
    added.set_slot(host.slot);
    ToWire(host.offer, added);
  }
}

absl::StatusOr<Membership> FromWire(const wire::Members& message) {
  Membership membership = {.epoch = message.epoch()};
  int32_t last_slot = -1;
  for (const wire::Host& host : message.hosts()) {
    const auto slot = static_cast<int32_t>(host.slot());
    if (slot <= last_slot || slot >= kMaxHostSlots) {
      return absl::InvalidArgumentError(
          fmt::format("the coordinator names slot {} after slot {}", slot, last_slot));
    }
    const HostOffer offer = {.advertisement = host.advertisement(),
                             .work_address = host.work_address()};
    ZP_RETURN_IF_ERROR(CheckOffer(offer));
    membership.hosts.push_back({.slot = slot, .offer = offer});
    last_slot = slot;
  }
  return membership;
}

void ToWire(const PlacementInputs& placement, wire::Placement& message) {
  message.set_host_slots(placement.host_slots);
  message.set_expert_memory_bytes(placement.expert_memory_bytes);
  message.set_rank_count(placement.rank_count);
  message.set_window_slot_count(placement.window_slot_count);
  message.set_redundancy(placement.redundancy);
}

absl::StatusOr<PlacementInputs> FromWire(const wire::Placement& message) {
  const PlacementInputs placement = {
      .host_slots = static_cast<int32_t>(message.host_slots()),
      .expert_memory_bytes = message.expert_memory_bytes(),
      .rank_count = static_cast<int32_t>(message.rank_count()),
      .window_slot_count = static_cast<int32_t>(message.window_slot_count()),
      .redundancy = static_cast<int32_t>(message.redundancy())};
  ZP_RETURN_IF_ERROR(CheckPlacement(placement));
  return placement;
}

absl::Status CheckPlacement(const PlacementInputs& placement) {
  ZP_RETURN_IF_ERROR(CheckCount("host_slots", placement.host_slots, 1, kMaxHostSlots));
  ZP_RETURN_IF_ERROR(CheckCount("rank_count", placement.rank_count, 1, kMaxRankCount));
  ZP_RETURN_IF_ERROR(
      CheckCount("window_slot_count", placement.window_slot_count, 2, kMaxWindowSlots));
  return CheckCount("redundancy", placement.redundancy, 0, placement.host_slots);
}

}  // namespace zp::cluster
