// The worker's end of one gateway's stream: the works that it brought, the answers that wait to be
// sent to it, and its place in the reports.
//
// Thread safety: gRPC's threads call the On... methods and the sinks' threads bring answers;
// Advance is called by one thread, the clerk of the server, which alone writes and ends the stream.
// Ownership: shared by the clerk, by gRPC until OnDone, and by every work that is not answered, so
// a late answer finds a closed link and no dangling one. Sinks and board are used until Advance has
// said that the link is over, and by no answer.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "grpcpp/support/server_callback.h"
#include "protocol/work.h"
#include "workplane/report_board.h"
#include "workplane/signal.h"
#include "workplane/work_plane.grpc.pb.h"
#include "workplane/work_server.h"

namespace zp::workplane {

class GatewayLink final : public grpc::ServerBidiReactor<wire::FromGateway, wire::FromWorker>,
                          public std::enable_shared_from_this<GatewayLink> {
 public:
  using Clock = std::chrono::steady_clock;

  GatewayLink(grpc::CallbackServerContext& context,
              const WorkServerOptions& options,
              const std::vector<protocol::WorkSink*>& sinks,
              ReportBoard& board,
              std::shared_ptr<Signal> clerk);

  // Begins to read. Once.
  void Start();

  // The clerk's: sends what has gathered, ends what is to end. True: the link is over, and does
  // nothing any more but wait for late answers. When the gateway was heard last is held against
  // `now`.
  bool Advance(Clock::time_point now);

  // Takes no more works; says so to the gateway.
  void StartDraining();
  // All that was taken is answered and sent.
  bool is_idle() const;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  struct WaitingAnswer {
    uint64_t id = 0;
    size_t bytes = 0;  // about
    absl::StatusOr<protocol::WorkResult> result;
  };

  absl::Status Handle(wire::FromGateway& message);
  absl::Status Take(const wire::Submit& submit);
  absl::Status Admit(const wire::Submit& submit, std::stop_token& cancel);
  absl::Status BringToRank(const wire::Submit& submit, std::stop_token cancel);
  void Answer(uint64_t id, absl::StatusOr<protocol::WorkResult> result);
  void Close(const grpc::Status& status);
  void TearIfSilent(Clock::time_point now);
  std::vector<WaitingAnswer> TakeAnswers();
  bool FillMessage();
  void AddAnswer(const WaitingAnswer& waiting);

  grpc::CallbackServerContext& context_;  // until OnDone
  const WorkServerOptions& options_;      // until the link is over; so are the next two
  const std::vector<protocol::WorkSink*>& sinks_;
  const std::string peer_;
  const std::shared_ptr<Signal> clerk_;

  wire::FromGateway incoming_;  // of the read that is under way
  bool said_hello_ = false;     // of the thread that reads

  // The clerk's.
  wire::FromWorker outgoing_;  // of the write that is under way
  std::unique_ptr<ReportBoard::Reader> reports_;
  bool is_welcomed_ = false;
  bool told_draining_ = false;
  bool is_torn_ = false;

  mutable std::mutex mutex_;                               // of all below
  std::shared_ptr<GatewayLink> self_;                      // gRPC's share
  absl::flat_hash_map<uint64_t, std::stop_source> works_;  // not answered
  std::deque<WaitingAnswer> answers_;
  size_t unsent_bytes_ = 0;  // of answers_
  std::optional<uint64_t> pong_;
  bool must_welcome_ = false;
  bool is_draining_ = false;
  bool is_reading_ = true;
  bool is_writing_ = false;
  bool is_closed_ = false;
  grpc::Status end_status_;
  Clock::time_point heard_ = Clock::now();
};

}  // namespace zp::workplane
