#include "workplane/gateway_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "base/logging.h"
#include "cluster/wire.h"
#include "fmt/format.h"
#include "workplane/wire.h"

namespace zp::workplane {
namespace {

// Reports share messages with answers; a full one holds at most so many blocks.
constexpr size_t kBlocksPerMessage = kFullMessageBytes / sizeof(protocol::BlockHash);

size_t BytesOf(const absl::StatusOr<protocol::WorkResult>& result) {
  constexpr size_t kBytes = 64;  // of what every answer has
  if (!result.ok()) {
    return kBytes + result.status().message().size();
  }
  size_t bytes = kBytes;
  for (const protocol::SequenceResult& sequence : result->sequences) {
    bytes += sizeof(float) * sequence.pooled.size();
    for (const protocol::Row& row : sequence.rows) {
      bytes += sizeof(float) * (1 + row.column_logits.size()) +
               sizeof(protocol::TokenLogit) * row.top.size();
    }
  }
  return bytes;
}

absl::Status Full(const char* what) {
  absl::Status status =
      absl::ResourceExhaustedError(fmt::format("the worker holds too {} for this gateway", what));
  status.SetPayload(protocol::kRetrySecondsPayload, absl::Cord("1"));
  return status;
}

}  // namespace

GatewayLink::GatewayLink(grpc::CallbackServerContext& context,
                         const WorkServerOptions& options,
                         const std::vector<protocol::WorkSink*>& sinks,
                         ReportBoard& board,
                         std::shared_ptr<Signal> clerk)
    : context_(context),
      options_(options),
      sinks_(sinks),
      peer_(context.peer()),
      clerk_(std::move(clerk)),
      reports_(board.Subscribe([clerk = clerk_] { clerk->Notify(); })) {}

void GatewayLink::Start() {
  {
    const std::lock_guard lock(mutex_);
    self_ = shared_from_this();
  }
  StartRead(&incoming_);
}

void GatewayLink::OnReadDone(bool ok) {
  absl::Status status = absl::CancelledError("the gateway has gone");
  if (ok) {
    {
      const std::lock_guard lock(mutex_);
      heard_ = Clock::now();
    }
    status = Handle(incoming_);
  }
  if (!status.ok()) {
    Close(cluster::ToGrpc(status));
  }
  bool goes_on = false;
  {
    const std::lock_guard lock(mutex_);
    is_reading_ = !is_closed_;
    goes_on = is_reading_;
  }
  // A link that is closed now has its read fail, since whoever closed it tears the stream.
  if (goes_on) {
    StartRead(&incoming_);
  } else {
    clerk_->Notify();
  }
}

void GatewayLink::OnWriteDone(bool /*ok*/) {  // a failed write: the read fails too
  {
    const std::lock_guard lock(mutex_);
    is_writing_ = false;
  }
  clerk_->Notify();
}

void GatewayLink::OnCancel() { Close({grpc::StatusCode::CANCELLED, "the gateway has gone"}); }

void GatewayLink::OnDone() {
  std::shared_ptr<GatewayLink> last;  // may end here, when the lock is free
  const std::lock_guard lock(mutex_);
  last.swap(self_);
}

// What is left to do for a message that no gateway sends is to end the stream.
absl::Status GatewayLink::Handle(wire::FromGateway& message) {
  if (message.has_hello() == said_hello_) {
    return absl::InvalidArgumentError("a stream begins with a hello, and has one");
  }
  if (!said_hello_) {
    if (message.hello().model_fingerprint() != options_.model_fingerprint) {
      return absl::FailedPreconditionError(
          fmt::format("model_fingerprint is '{}' at the gateway and '{}' at the worker",
                      message.hello().model_fingerprint().substr(0, 512),
                      options_.model_fingerprint));
    }
    said_hello_ = true;
    const std::lock_guard lock(mutex_);
    must_welcome_ = true;
    clerk_->Notify();
  }
  for (const wire::Submit& submit : message.submits()) {
    ZP_RETURN_IF_ERROR(Take(submit));
  }
  for (const uint64_t id : message.cancels()) {
    std::stop_source cancel(std::nostopstate);
    {
      const std::lock_guard lock(mutex_);
      if (const auto work = works_.find(id); work != works_.end()) {
        cancel = work->second;
      }
    }
    cancel.request_stop();  // not under the lock: it may run what the sink has registered
  }
  if (message.has_ping()) {
    const std::lock_guard lock(mutex_);
    pong_ = message.ping();
    clerk_->Notify();
  }
  return absl::OkStatus();
}

// Answers a work that cannot be taken. Errors: the gateway does not keep to the protocol.
absl::Status GatewayLink::Take(const wire::Submit& submit) {
  std::stop_token cancel;
  ZP_RETURN_IF_ERROR(Admit(submit, cancel));
  if (absl::Status status = BringToRank(submit, std::move(cancel)); !status.ok()) {
    Answer(submit.id(), std::move(status));
  }
  return absl::OkStatus();
}

absl::Status GatewayLink::Admit(const wire::Submit& submit, std::stop_token& cancel) {
  const std::lock_guard lock(mutex_);
  const auto [work, is_new] = works_.try_emplace(submit.id());
  if (!is_new) {
    return absl::InvalidArgumentError(fmt::format("work {} was brought twice", submit.id()));
  }
  if (answers_.size() >= 2 * options_.max_unanswered_works) {
    // Refusals need room too: who brings on and on and does not read has to go.
    return absl::ResourceExhaustedError(
        fmt::format("{} answers wait and are not read", answers_.size()));
  }
  cancel = work->second.get_token();
  return absl::OkStatus();
}

absl::Status GatewayLink::BringToRank(const wire::Submit& submit, std::stop_token cancel) {
  {
    const std::lock_guard lock(mutex_);
    if (is_closed_ || is_draining_) {
      return absl::UnavailableError("the worker is ending");
    }
    if (works_.size() + answers_.size() > options_.max_unanswered_works) {
      return Full("many works");
    }
    if (unsent_bytes_ > options_.max_unsent_bytes) {
      return Full("many bytes of answers");
    }
  }
  if (submit.rank() >= sinks_.size()) {
    return absl::InvalidArgumentError(
        fmt::format("rank is {}; the worker has {}", submit.rank(), sinks_.size()));
  }
  ZP_ASSIGN_OR_RETURN(protocol::Work work, FromWire(submit.work()));
  ZP_ASSIGN_OR_RETURN(work.deadline, DeadlineOf(submit, Clock::now()));
  return sinks_[submit.rank()]->Submit(
      std::move(work),
      std::move(cancel),
      [link = shared_from_this(), id = submit.id()](absl::StatusOr<protocol::WorkResult> result) {
        link->Answer(id, std::move(result));
      });
}

void GatewayLink::Answer(uint64_t id, absl::StatusOr<protocol::WorkResult> result) {
  const size_t bytes = BytesOf(result);
  {
    const std::lock_guard lock(mutex_);
    works_.erase(id);
    if (is_closed_) {
      return;
    }
    answers_.push_back({.id = id, .bytes = bytes, .result = std::move(result)});
    unsent_bytes_ += bytes;
  }
  clerk_->Notify();
}

void GatewayLink::Close(const grpc::Status& status) {
  absl::flat_hash_map<uint64_t, std::stop_source> works;
  {
    const std::lock_guard lock(mutex_);
    if (is_closed_) {
      return;
    }
    is_closed_ = true;
    end_status_ = status;
    works.swap(works_);
    answers_.clear();
    unsent_bytes_ = 0;
  }
  if (!works.empty()) {
    base::log::warn(
        "work plane: {} works of {} are dropped: {}", works.size(), peer_, status.error_message());
  }
  for (auto& [id, cancel] : works) {
    cancel.request_stop();
  }
  clerk_->Notify();
}

void GatewayLink::StartDraining() {
  {
    const std::lock_guard lock(mutex_);
    is_draining_ = true;
  }
  clerk_->Notify();
}

bool GatewayLink::is_idle() const {
  const std::lock_guard lock(mutex_);
  return is_closed_ || (works_.empty() && answers_.empty() && !is_writing_);
}

bool GatewayLink::Advance(Clock::time_point now) {
  TearIfSilent(now);
  bool is_over = false;
  {
    const std::lock_guard lock(mutex_);
    if (is_writing_ || (is_closed_ && is_reading_)) {
      return false;
    }
    is_over = is_closed_;
    is_writing_ = !is_over;  // from before it takes answers: with one in hand it is not idle
  }
  if (is_over) {
    reports_.reset();
    Finish(end_status_);
    return true;
  }
  if (FillMessage()) {
    StartWrite(&outgoing_);
  } else {
    const std::lock_guard lock(mutex_);
    is_writing_ = false;
  }
  return false;
}

// Also a closed link whose last write does not come to an end.
void GatewayLink::TearIfSilent(Clock::time_point now) {
  {
    const std::lock_guard lock(mutex_);
    if (is_torn_ || now < heard_ + options_.gateway_timeout) {
      return;
    }
  }
  is_torn_ = true;
  Close({grpc::StatusCode::DEADLINE_EXCEEDED,
         fmt::format("the gateway was not heard for {} ms", options_.gateway_timeout.count())});
  context_.TryCancel();
}

// False: there is nothing to send.
bool GatewayLink::FillMessage() {
  outgoing_.Clear();
  std::vector<WaitingAnswer> answers;
  bool is_news = false;
  {
    const std::lock_guard lock(mutex_);
    if (must_welcome_) {
      outgoing_.mutable_welcome()->set_rank_count(static_cast<uint32_t>(sinks_.size()));
      outgoing_.mutable_welcome()->set_max_held_blocks(options_.max_held_blocks);
      is_news = true;
      is_welcomed_ = true;
      must_welcome_ = false;
    }
    if (!is_welcomed_) {
      return false;
    }
    if (pong_) {
      outgoing_.set_pong(*std::exchange(pong_, std::nullopt));
      is_news = true;
    }
    if (is_draining_ && !std::exchange(told_draining_, true)) {
      outgoing_.set_is_draining(true);
      is_news = true;
    }
    answers = TakeAnswers();
  }
  // After the answers: the reports of the passes that they come from are there already.
  for (const ReportBoard::Report& report : reports_->Take(kBlocksPerMessage)) {
    ToWire(report.rank, report.report, *outgoing_.add_reports());
    is_news = true;
  }
  for (const WaitingAnswer& waiting : answers) {
    AddAnswer(waiting);
    is_news = true;
  }
  return is_news;
}

// REQUIRES: the lock.
std::vector<GatewayLink::WaitingAnswer> GatewayLink::TakeAnswers() {
  std::vector<WaitingAnswer> taken;
  size_t bytes = 0;
  while (!answers_.empty() && bytes < kFullMessageBytes) {
    bytes += answers_.front().bytes;
    taken.push_back(std::move(answers_.front()));
    answers_.pop_front();
  }
  unsent_bytes_ -= bytes;
  return taken;
}

void GatewayLink::AddAnswer(const WaitingAnswer& waiting) {
  wire::Answer& answer = *outgoing_.add_answers();
  answer.set_id(waiting.id);
  absl::Status status = waiting.result.status();
  if (status.ok()) {
    status = ToWire(*waiting.result, *answer.mutable_result());
  }
  if (!status.ok()) {
    ToWire(status, *answer.mutable_error());
  }
}

}  // namespace zp::workplane
