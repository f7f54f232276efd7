// Holds the ranks of this process out to gateways: takes tokenized works from them over gRPC,
// brings them to the ranks and sends the answers and the ranks' reports back.
//
// One stream a gateway. What a gateway sent is cancelled when it goes away: its stream breaks, or
// it says nothing for `gateway_timeout`. A gateway that reads slowly gets refusals, not memory.
//
// Thread safety: any thread. Ownership: sinks and board must outlive the server; the destructor
// cancels what is in flight and does not wait for the sinks to answer it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "protocol/work.h"
#include "workplane/report_board.h"

namespace zp::workplane {

struct WorkServerOptions {
  std::string address = "127.0.0.1";  // numeric; the only one that is listened on
  uint16_t port = 0;                  // 0: any that is free
  std::string join_token = {};        // who has it may bring work
  // PEM files. Without them only loopback and private addresses are listened on.
  std::string tls_certificate_file = {};
  std::string tls_key_file = {};
  bool allow_plaintext = false;        // any address, without TLS
  std::string model_fingerprint = {};  // a gateway must have the same
  std::chrono::milliseconds gateway_timeout{3000};
  // What the prefix cache of a rank has room for. Gateways end the stream of a worker that says it
  // holds more.
  uint64_t max_held_blocks = 0;
  // Of one gateway; beyond, works are answered ResourceExhausted at once.
  size_t max_unanswered_works = 32'768;        // until the answer is on its way
  size_t max_unsent_bytes = size_t{64} << 20;  // of answers that wait to be sent
};

class WorkServer {
 public:
  // Listens when it returns. `sinks`: [rank], as many as the board has ranks.
  // Errors: PermissionDenied for plain text on a public address; Unavailable for a port in use or a
  // certificate that is none.
  static absl::StatusOr<std::unique_ptr<WorkServer>> Start(const WorkServerOptions& options,
                                                           std::vector<protocol::WorkSink*> sinks,
                                                           ReportBoard& board);
  virtual ~WorkServer() = default;

  virtual uint16_t port() const = 0;

  // From now on new works are answered Unavailable and the gateways know it. Waits until all that
  // was taken is answered and sent; false if that took longer than until `deadline`.
  virtual bool Drain(std::chrono::steady_clock::time_point deadline) = 0;
};

}  // namespace zp::workplane
