// What the hosts of a cluster agree on: who is there, and what every host computes the placement
// from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace zp::cluster {

// What is more comes from a mistake or an attacker, and is refused before it is looked at.
constexpr int32_t kMaxHostSlots = 64;
constexpr int32_t kMaxRankCount = 1024;
constexpr size_t kMaxAdvertisementBytes = size_t{64} << 10;
constexpr size_t kMaxWorkAddressBytes = 256;
constexpr size_t kMaxFingerprintBytes = 512;
constexpr size_t kMinJoinTokenBytes = 16;
constexpr size_t kMaxJoinTokenBytes = 1024;

// Every slot has the same budget, and none changes while the cluster lives: a host that comes or
// goes moves no expert.
struct PlacementInputs {
  int32_t host_slots = 1;
  uint64_t expert_memory_bytes = 0;  // of each slot
  int32_t rank_count = 1;            // of each slot: its budget holds a window for so many
  int32_t window_slot_count = 2;
  int32_t redundancy = 0;

  bool operator==(const PlacementInputs&) const = default;
};

// What a host holds out to the others.
struct HostOffer {
  // fabric::MemoryServer::advertisement() of the host: opaque, and as secret as the weights.
  std::string advertisement = {};
  // HOST:PORT where its ranks take works; empty: they take none from outside.
  std::string work_address = {};

  bool operator==(const HostOffer&) const = default;
};

// Errors: InvalidArgument for what is over its limit, or no HOST:PORT.
absl::Status CheckOffer(const HostOffer& offer);

struct MemberHost {
  int32_t slot = 0;
  HostOffer offer = {};

  bool operator==(const MemberHost&) const = default;
};

// The hosts whose memory can be read now. A host that still loads its shard is not among them.
struct Membership {
  uint64_t epoch = 0;                  // rises with every change
  std::vector<MemberHost> hosts = {};  // by slot
};

}  // namespace zp::cluster
