// The gateway's end of one stream to a worker: one message each way at a time.
//
// Thread safety: one thread uses it; gRPC's threads only wake that thread.
// Ownership: the owner may destroy it once it has ended, which follows soon after End.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "workplane/signal.h"
#include "workplane/work_plane.grpc.pb.h"

namespace zp::workplane {

class WorkStream final : public grpc::ClientBidiReactor<wire::FromGateway, wire::FromWorker> {
 public:
  // `owner` is notified whenever a message has come or gone, or the stream has broken or ended.
  WorkStream(const std::shared_ptr<grpc::Channel>& channel,
             const std::string& join_token,
             std::shared_ptr<Signal> owner);

  // The next message, if it is there. Nothing is read meanwhile, so a worker that sends faster than
  // the owner takes has to wait.
  bool TakeMessage(wire::FromWorker& message);

  bool can_write() const;
  // REQUIRES: can_write. `message` is taken.
  void Write(wire::FromGateway& message);

  // Nothing comes or goes any more.
  bool is_broken() const;
  // Tears it. Once; after it only ended() and status() are of use.
  void End();
  bool has_ended() const;
  // Why it ended. REQUIRES: has_ended.
  grpc::Status status() const;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  const std::unique_ptr<wire::WorkPlane::Stub> stub_;
  grpc::ClientContext context_;
  wire::FromWorker incoming_;   // of the read that is under way
  wire::FromGateway outgoing_;  // of the write that is under way

  mutable std::mutex mutex_;  // of all below
  std::shared_ptr<Signal> owner_;
  bool has_message_ = false;
  bool is_writing_ = false;
  bool is_broken_ = false;
  bool has_ended_ = false;
  grpc::Status status_;
};

}  // namespace zp::workplane
