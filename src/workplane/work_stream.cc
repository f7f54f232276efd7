#include "workplane/work_stream.h"

#include <utility>

#include "workplane/wire.h"

namespace zp::workplane {

WorkStream::WorkStream(const std::shared_ptr<grpc::Channel>& channel,
                       const std::string& join_token,
                       std::shared_ptr<Signal> owner)
    : stub_(wire::WorkPlane::NewStub(channel)) {
  {
    const std::lock_guard lock(mutex_);
    owner_ = std::move(owner);
  }
  context_.AddMetadata(kTokenKey, join_token);
  stub_->async()->Serve(&context_, this);
  AddHold();  // the owner writes whenever it likes, until End
  StartRead(&incoming_);
  StartCall();
}

bool WorkStream::TakeMessage(wire::FromWorker& message) {
  {
    const std::lock_guard lock(mutex_);
    if (!has_message_) {
      return false;
    }
    has_message_ = false;
  }
  message.Swap(&incoming_);
  StartRead(&incoming_);
  return true;
}

bool WorkStream::can_write() const {
  const std::lock_guard lock(mutex_);
  return !is_writing_ && !is_broken_;
}

void WorkStream::Write(wire::FromGateway& message) {
  {
    const std::lock_guard lock(mutex_);
    is_writing_ = true;
  }
  outgoing_.Swap(&message);
  StartWrite(&outgoing_);
}

bool WorkStream::is_broken() const {
  const std::lock_guard lock(mutex_);
  return is_broken_;
}

void WorkStream::End() {
  if (!is_broken()) {  // else the worker's own status is here, and is not to be covered
    context_.TryCancel();
  }
  RemoveHold();
}

bool WorkStream::has_ended() const {
  const std::lock_guard lock(mutex_);
  return has_ended_;
}

grpc::Status WorkStream::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void WorkStream::OnReadDone(bool ok) {
  std::shared_ptr<Signal> owner;
  {
    const std::lock_guard lock(mutex_);
    owner = owner_;
    has_message_ = ok;
    is_broken_ = is_broken_ || !ok;
  }
  owner->Notify();
}

void WorkStream::OnWriteDone(bool ok) {
  std::shared_ptr<Signal> owner;
  {
    const std::lock_guard lock(mutex_);
    owner = owner_;
    is_writing_ = !ok;  // after a write has failed none may follow; the read fails soon
  }
  owner->Notify();
}

void WorkStream::OnDone(const grpc::Status& status) {
  std::shared_ptr<Signal> owner;  // the stream may be gone once it has ended
  {
    const std::lock_guard lock(mutex_);
    owner = owner_;
    status_ = status;
    has_ended_ = true;
  }
  owner->Notify();
}

}  // namespace zp::workplane
