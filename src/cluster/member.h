// A host's seat in the cluster: joins a coordinator, keeps the slot with heartbeats, hears who else
// is there.
//
// Joining has two steps. After Join the host has a slot and computes from placement() what it
// keeps; loading that may take minutes while heartbeats go on. Publish then makes it visible to the
// others. When the coordinator is lost the member goes on with the hosts it knows and asks for its
// slot again until it has it, with growing pauses of at most two seconds; no other slot is of use
// to it.
//
// Thread safety: any thread, but Publish from one at a time. Ownership: owns its threads; the
// destructor leaves the cluster, waiting at most a second for the coordinator, and after it
// `on_change` is not called any more. `on_change` runs on a thread of the member's, never under a
// lock; the next heartbeat waits for it, so it hands over what takes long.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "cluster/membership.h"

namespace zp::cluster {

struct MemberOptions {
  std::string coordinator = {};  // HOST:PORT, [v6]:PORT
  std::string join_token = {};
  // PEM file. Without it only a loopback or private address is dialled.
  std::string tls_root_certificates_file = {};
  bool allow_plaintext = false;  // any address, without TLS
  std::string model_fingerprint = {};
  uint64_t expert_memory_bytes = 0;  // at least what a slot needs
  int32_t rank_count = 1;
  std::chrono::milliseconds join_timeout{30'000};  // how long to wait for a coordinator
};

class Member {
 public:
  using OnChange = std::function<void(const Membership&)>;

  // Waits for a coordinator that is not there yet; any refusal ends it at once.
  // Errors: InvalidArgument, PermissionDenied (the token, or plain text to a public address),
  // FailedPrecondition (another model, too little memory), ResourceExhausted (no slot is free),
  // Unavailable (nobody answers, or TLS does not agree).
  static absl::StatusOr<std::unique_ptr<Member>> Join(const MemberOptions& options,
                                                      OnChange on_change = {});
  virtual ~Member() = default;

  virtual int32_t slot() const = 0;
  virtual const PlacementInputs& placement() const = 0;
  // Visible to the others within a heartbeat, and again after each return. Replaces what was
  // published before. Errors: those of CheckOffer.
  virtual absl::Status Publish(const HostOffer& offer) = 0;
  // As last heard.
  virtual Membership membership() const = 0;
  // The coordinator answered the last call.
  virtual bool connected() const = 0;
};

}  // namespace zp::cluster
