// Between the messages of control_plane.proto and our own types. What comes in is checked here.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "cluster/control_plane.pb.h"
#include "cluster/membership.h"
#include "cluster/roster.h"
#include "grpcpp/support/status.h"

namespace zp::cluster {

// The codes are the same numbers in both.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

void ToWire(const Session& session, wire::Session& message);
Session FromWire(const wire::Session& message);

void ToWire(const Membership& membership, wire::Members& message);
// Errors: InvalidArgument for slots that are out of order or range; those of CheckOffer.
absl::StatusOr<Membership> FromWire(const wire::Members& message);

void ToWire(const PlacementInputs& placement, wire::Placement& message);
// Errors: those of CheckPlacement.
absl::StatusOr<PlacementInputs> FromWire(const wire::Placement& message);

// Errors: InvalidArgument for a count outside its limits.
absl::Status CheckPlacement(const PlacementInputs& placement);

// Of a message that has the fields; none if it brings none.
template <typename Message>
std::optional<HostOffer> OfferOf(const Message& message) {
  if (!message.has_advertisement()) {
    return std::nullopt;
  }
  return HostOffer{.advertisement = message.advertisement(),
                   .work_address = message.work_address()};
}
template <typename Message>
void ToWire(const HostOffer& offer, Message& message) {
  message.set_advertisement(offer.advertisement);
  message.set_work_address(offer.work_address);
}

}  // namespace zp::cluster
