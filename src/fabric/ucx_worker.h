// What both ends of the weight plane over UCX stand on: a context, a worker, the advertisement.
//
// Peers trust each other here: where UCX finds only TCP it serves whatever address a peer names.
// UCX's own variables (UCX_TLS, UCX_NET_DEVICES) choose among its transports.
//
// Thread safety: one thread at a time uses a worker and everything made from it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "ucp/api/ucp.h"

namespace zp::fabric::ucx {

// A context and its only worker, for one-sided reads that can be slept for.
class Worker {
 public:
  // Errors: Unavailable with what UCX says.
  static absl::StatusOr<Worker> Make();
  ~Worker();
  Worker(Worker&& other) noexcept
      : context_(std::exchange(other.context_, nullptr)),
        worker_(std::exchange(other.worker_, nullptr)),
        event_fd_(other.event_fd_) {}
  Worker& operator=(Worker&&) = delete;

  ucp_context_h context() const { return context_; }
  ucp_worker_h get() const { return worker_; }
  // Opaque bytes, by which the workers of other processes reach this one.
  std::string Address() const;
  // Readable, once Arm has returned true, when Progress has something to do.
  int event_fd() const { return event_fd_; }
  bool Arm() { return ucp_worker_arm(worker_) == UCS_OK; }
  // False if there was nothing to do.
  bool Progress() { return ucp_worker_progress(worker_) != 0; }

 private:
  Worker() = default;

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
};

// A region as a peer sees it.
struct RemoteRegion {
  uint32_t object = 0;
  uint64_t address = 0;  // in the server's process
  uint64_t size_bytes = 0;
  std::string key = "";  // packed by ucp_rkey_pack
};

// "ucx <host> <bytes of the worker's address> <region count>\n", then both in binary.
struct Advertisement {
  std::string host;            // for logs
  std::string worker_address;  // by ucp_worker_query
  std::vector<RemoteRegion> regions = {};

  std::string ToString() const;
  // Errors: InvalidArgument.
  static absl::StatusOr<Advertisement> Parse(const std::string& text);
};

}  // namespace zp::fabric::ucx
