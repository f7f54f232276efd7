#include "fabric/ucx_peer_source.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "fabric/ucx_worker.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

// What one Poll does at most, so that it returns while a peer sends faster than UCX copies.
constexpr int kMaxPollSteps = 256;

int ErrnoOf(ucs_status_t status) {
  switch (status) {
    case UCS_OK:
      return 0;
    case UCS_ERR_CANCELED:
      return ECANCELED;
    case UCS_ERR_REJECTED:
    case UCS_ERR_NOT_CONNECTED:
      return ECONNREFUSED;
    case UCS_ERR_UNREACHABLE:
      return EHOSTUNREACH;
    case UCS_ERR_CONNECTION_RESET:
      return ECONNRESET;
    case UCS_ERR_TIMED_OUT:
    case UCS_ERR_ENDPOINT_TIMEOUT:
      return ETIMEDOUT;
    default:
      return EIO;
  }
}

// An endpoint to the peer and the keys of its regions on it. It outlives its reads.
struct Connection {
  ucp_ep_h endpoint = nullptr;
  std::vector<ucp_rkey_h> keys = {};  // by region
  ucs_status_t failure = UCS_OK;      // set by UCX when the peer is lost
  int32_t reads_in_flight = 0;
  ucs_status_ptr_t closing = nullptr;  // the request of a close under way
};

struct ReadInFlight {
  SliceRead read = {};
  Connection* connection = nullptr;  // nullptr: the slot is free
  ucs_status_ptr_t request = nullptr;
  bool is_abandoned = false;
};

class UcxPeerSource final : public ByteSource {
 public:
  UcxPeerSource(ucx::Worker worker, ucx::Advertisement advertisement, int32_t depth);
  ~UcxPeerSource() override;

  std::string_view name() const override { return name_; }
  int32_t max_reads_in_flight() const override { return static_cast<int32_t>(reads_.size()); }
  void Start(const SliceRead& read) override;
  void Poll(std::vector<SliceDone>& done) override;
  bool Arm() override;
  int event_fd() const override { return worker_.event_fd(); }
  void Abandon() override;

 private:
  // nullptr where no region holds what `read` asks for.
  const ucx::RemoteRegion* FindRegion(const SliceRead& read) const;
  ucs_status_t Connect();
  void Close();
  void FinishClosing();
  void CollectEnded();

  ucx::Worker worker_;
  const ucx::Advertisement advertisement_;
  const std::string name_;
  std::unique_ptr<Connection> connection_;
  std::vector<std::unique_ptr<Connection>> closing_;
  std::vector<ReadInFlight> reads_;
  std::vector<uint32_t> free_slots_;  // into reads_
  std::vector<SliceDone> ended_;      // not yet fetched by Poll
};

UcxPeerSource::UcxPeerSource(ucx::Worker worker, ucx::Advertisement advertisement, int32_t depth)
    : worker_(std::move(worker)),
      advertisement_(std::move(advertisement)),
      name_(fmt::format("peer {} over UCX", advertisement_.host)),
      reads_(depth) {
  ended_.reserve(depth);
  for (uint32_t slot = 0; slot < reads_.size(); ++slot) {
    free_slots_.push_back(slot);
  }
}

UcxPeerSource::~UcxPeerSource() {
  Abandon();
  while (!closing_.empty()) {  // until then UCX may write to destinations
    worker_.Progress();
    CollectEnded();
    FinishClosing();
  }
}

void UcxPeerSource::Start(const SliceRead& read) {
  ZP_CHECK(free_slots_.size() > ended_.size())
      << name_ << ": more than " << reads_.size() << " reads";
  const ucx::RemoteRegion* region = FindRegion(read);
  if (region == nullptr) {
    return ended_.push_back({.token = read.token, .error = ENOENT});
  }
  const ucs_status_t connected = Connect();
  if (connected != UCS_OK) {
    return ended_.push_back({.token = read.token, .error = ErrnoOf(connected)});
  }
  const ucp_request_param_t parameters = {};
  const size_t index = region - advertisement_.regions.data();
  const ucs_status_ptr_t request = ucp_get_nbx(connection_->endpoint,
                                               read.destination.data(),
                                               read.destination.size(),
                                               region->address + read.offset,
                                               connection_->keys[index],
                                               &parameters);
  if (!UCS_PTR_IS_PTR(request)) {  // it has ended, well or not
    return ended_.push_back({.token = read.token, .error = ErrnoOf(UCS_PTR_STATUS(request))});
  }
  ++connection_->reads_in_flight;
  reads_[free_slots_.back()] = {.read = read, .connection = connection_.get(), .request = request};
  free_slots_.pop_back();
}

const ucx::RemoteRegion* UcxPeerSource::FindRegion(const SliceRead& read) const {
  const auto found =
      std::ranges::find(advertisement_.regions, read.object, &ucx::RemoteRegion::object);
  const bool is_inside = found != advertisement_.regions.end() &&
                         read.offset <= found->size_bytes &&
                         read.destination.size() <= found->size_bytes - read.offset;
  return is_inside ? &*found : nullptr;
}

// Makes a connection unless there is a good one; UCX completes it in its own time.
ucs_status_t UcxPeerSource::Connect() {
  if (connection_ != nullptr && connection_->failure != UCS_OK) {
    Close();
  }
  if (connection_ != nullptr) {
    return UCS_OK;
  }
  auto connection = std::make_unique<Connection>();
  ucp_ep_params_t parameters = {};
  parameters.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                          UCP_EP_PARAM_FIELD_ERR_HANDLER;
  parameters.address = reinterpret_cast<const ucp_address_t*>(advertisement_.worker_address.data());
  parameters.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  parameters.err_handler = {.cb =
                                [](void* lost, ucp_ep_h, ucs_status_t status) {
                                  static_cast<Connection*>(lost)->failure = status;
                                },
                            .arg = connection.get()};
  const ucs_status_t status = ucp_ep_create(worker_.get(), &parameters, &connection->endpoint);
  if (status != UCS_OK) {
    return status;
  }
  connection_ = std::move(connection);
  for (const ucx::RemoteRegion& region : advertisement_.regions) {
    ucp_rkey_h key = nullptr;
    const ucs_status_t unpacked =
        ucp_ep_rkey_unpack(connection_->endpoint, region.key.data(), &key);
    if (unpacked != UCS_OK) {
      Close();
      return unpacked;
    }
    connection_->keys.push_back(key);
  }
  return UCS_OK;
}

// Begins to end the connection and, with it, its reads: by force, so that the peer has no say.
void UcxPeerSource::Close() {
  ucp_request_param_t parameters = {};
  parameters.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  parameters.flags = UCP_EP_CLOSE_FLAG_FORCE;
  connection_->closing = ucp_ep_close_nbx(connection_->endpoint, &parameters);
  closing_.push_back(std::move(connection_));
}

void UcxPeerSource::FinishClosing() {
  std::erase_if(closing_, [](const std::unique_ptr<Connection>& connection) {
    const bool is_request = UCS_PTR_IS_PTR(connection->closing);
    if (connection->reads_in_flight > 0 ||
        (is_request && ucp_request_check_status(connection->closing) == UCS_INPROGRESS)) {
      return false;
    }
    if (is_request) {
      ucp_request_free(connection->closing);
    }
    for (ucp_rkey_h key : connection->keys) {
      ucp_rkey_destroy(key);
    }
    return true;
  });
}

void UcxPeerSource::Poll(std::vector<SliceDone>& done) {
  for (int step = 0; step < kMaxPollSteps && worker_.Progress(); ++step) {
  }
  CollectEnded();
  if (connection_ != nullptr && connection_->failure != UCS_OK) {
    Close();
  }
  FinishClosing();
  done.insert(done.end(), ended_.begin(), ended_.end());
  ended_.clear();
}

void UcxPeerSource::CollectEnded() {
  for (uint32_t slot = 0; slot < reads_.size(); ++slot) {
    ReadInFlight& in_flight = reads_[slot];
    if (in_flight.connection == nullptr) {
      continue;
    }
    const ucs_status_t status = ucp_request_check_status(in_flight.request);
    if (status == UCS_INPROGRESS) {
      continue;
    }
    ucp_request_free(in_flight.request);
    --in_flight.connection->reads_in_flight;
    in_flight.connection = nullptr;
    free_slots_.push_back(slot);
    ended_.push_back({.token = in_flight.read.token,
                      .error = in_flight.is_abandoned ? ECANCELED : ErrnoOf(status)});
  }
}

// UCX closes endpoints in steps that ring no bell, so while it does nobody sleeps.
bool UcxPeerSource::Arm() { return ended_.empty() && closing_.empty() && worker_.Arm(); }

void UcxPeerSource::Abandon() {
  for (ReadInFlight& in_flight : reads_) {
    in_flight.is_abandoned = true;
  }
  for (SliceDone& done : ended_) {
    done.error = ECANCELED;
  }
  if (connection_ != nullptr) {
    Close();
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> MakeUcxPeerSource(const std::string& advertisement,
                                                              int32_t depth) {
  ZP_ASSIGN_OR_RETURN(ucx::Advertisement parsed, ucx::Advertisement::Parse(advertisement));
  ZP_ASSIGN_OR_RETURN(ucx::Worker worker, ucx::Worker::Make());
  return std::make_unique<UcxPeerSource>(std::move(worker), std::move(parsed), depth);
}

}  // namespace zp::fabric
