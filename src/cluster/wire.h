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
// Errors: InvalidArgument for slots that are out of order or range, or advertisements too long.
absl::StatusOr<Membership> FromWire(const wire::Members& message);

void ToWire(const PlacementInputs& placement, wire::Placement& message);
// Errors: those of CheckPlacement.
absl::StatusOr<PlacementInputs> FromWire(const wire::Placement& message);

// Errors: InvalidArgument for a count outside its limits.
absl::Status CheckPlacement(const PlacementInputs& placement);

// The optional bytes of a message that has a field `advertisement`.
template <typename Message>
std::optional<std::string> AdvertisementOf(const Message& message) {
  return message.has_advertisement() ? std::optional(message.advertisement()) : std::nullopt;
}

}  // namespace zp::cluster
