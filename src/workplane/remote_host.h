// The ranks of a worker on another host, as places to bring work to. Keeps one stream to the
// worker's WorkServer; makes it again, with growing pauses, whenever it breaks.
//
// The host is lost when the stream breaks or nothing has been heard on it for `lost_after`: every
// work in flight gets Unavailable, after `on_down`. When it is there again it comes back under the
// same ranks.
//
// Thread safety: any thread. One thread of the host's own calls the callbacks and every `done`, in
// the order in which things came from the worker and never under a lock; it is one for all ranks of
// the host, so they hand over what takes long. They may Submit.
// Ownership: the ranks live as long as the host, up or not. After Stop nothing is called any more
// and Submit says Unavailable; so whoever uses the ranks may be taken down between Stop and the
// destructor.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"

namespace zp::workplane {

struct RemoteHostOptions {
  int32_t host = 0;             // its slot; what the callbacks call it
  std::string join_token = {};  // the cluster's
  std::string model_fingerprint = {};
  // PEM file. Without it only a loopback or private address is dialled.
  std::string tls_root_certificates_file = {};
  bool allow_plaintext = false;  // any address, without TLS
  std::chrono::milliseconds ping_interval{500};
  std::chrono::milliseconds lost_after{3000};
  std::chrono::milliseconds first_pause{50};
  std::chrono::milliseconds longest_pause{2000};
  // Beyond, Submit says ResourceExhausted.
  size_t max_unanswered_works = 32'768;
  size_t max_unsent_bytes = size_t{128} << 20;  // of works that wait to be sent
};

struct RemoteHostEvents {
  // Ranks 0 to rank_count - 1 take work from now on. Reports follow, the first of each rank with
  // all that it holds.
  std::function<void(int32_t host, int32_t rank_count)> on_up;
  // They do not any more. What was in flight is answered afterwards: Unavailable, or, if the worker
  // ends in order, what it still answers.
  std::function<void(int32_t host, const absl::Status& why)> on_down;
  std::function<void(int32_t host, int32_t rank, const protocol::RankReport& report)> on_report;
};

class RemoteHost {
 public:
  // Dials nobody yet. All callbacks are needed.
  static std::unique_ptr<RemoteHost> Create(RemoteHostOptions options, RemoteHostEvents events);
  virtual ~RemoteHost() = default;

  // HOST:PORT, [v6]:PORT; where the worker is from now on. A stream to another address ends. Empty:
  // the worker has left; a stream to it may end in peace but is not made again.
  virtual void SetAddress(std::string address) = 0;

  // May be asked for at any time. A rank that the worker has not (yet) takes no work.
  // REQUIRES: 0 <= rank < cluster::kMaxRankCount.
  virtual protocol::WorkSink& rank(int32_t rank) = 0;

  // OK while it is up; else why not.
  virtual absl::Status status() const = 0;

  virtual void Stop() = 0;
};

}  // namespace zp::workplane
