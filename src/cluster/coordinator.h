// The one host that knows which hosts there are: gives out host slots, watches heartbeats, tells
// everybody when one comes or goes. It moves no weights and places no expert; without it the
// members go on with those they know.
//
// Thread safety: any thread. Ownership: owns its server and threads; the destructor ends both, and
// after it `on_change` is not called any more. `on_change` runs on a thread of the coordinator's,
// never under a lock; while it runs nobody else is told, so it hands over what takes long.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "cluster/membership.h"

namespace zp::cluster {

struct CoordinatorOptions {
  std::string address = "127.0.0.1";  // numeric; the only one that is listened on
  uint16_t port = 0;                  // 0: any that is free
  std::string join_token = {};        // 16 to 1024 bytes; who has it may read the weights
  // PEM files. Without them only loopback and private addresses are listened on.
  std::string tls_certificate_file = {};
  std::string tls_key_file = {};
  bool allow_plaintext = false;  // any address, without TLS
  // Of model, layout at rest and whatever else must be equal on all hosts.
  std::string model_fingerprint = {};
  PlacementInputs placement = {};
  std::chrono::milliseconds heartbeat_interval{1000};
  std::chrono::milliseconds member_timeout{3000};  // at least twice the interval
};

class Coordinator {
 public:
  using OnChange = std::function<void(const Membership&)>;

  // Listens when it returns. `on_change` may be empty.
  // Errors: InvalidArgument for an option outside its limits; PermissionDenied for plain text on a
  // public address; Unavailable for a port in use or a certificate that is none.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(const CoordinatorOptions& options,
                                                            OnChange on_change = {});
  virtual ~Coordinator() = default;

  virtual uint16_t port() const = 0;
  // Makes the coordinator's own host, slot 0, a member.
  // Errors: those of CheckOffer.
  virtual absl::Status SetSelf(const HostOffer& offer) = 0;
  virtual Membership membership() const = 0;
};

}  // namespace zp::cluster
