#include "fabric/ucx_memory_server.h"

#include <poll.h>

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fabric/descriptor.h"
#include "fabric/socket_address.h"
#include "fabric/ucx_worker.h"
#include "fmt/format.h"

namespace zp::fabric {
namespace {

class UcxMemoryServer final : public MemoryServer {
 public:
  explicit UcxMemoryServer(ucx::Worker worker) : worker_(std::move(worker)) {}
  ~UcxMemoryServer() override;

  // Once, before anything else.
  absl::Status Begin(std::span<const MemoryRegion> regions, const std::string& host);
  const std::string& advertisement() const override { return advertisement_; }

 private:
  absl::StatusOr<ucx::RemoteRegion> Register(const MemoryRegion& region);
  void Serve();

  ucx::Worker worker_;
  std::vector<ucp_mem_h> registrations_;
  std::string advertisement_;
  EventDescriptor stop_;
  std::jthread thread_;
};

absl::Status UcxMemoryServer::Begin(std::span<const MemoryRegion> regions,
                                    const std::string& host) {
  ucx::Advertisement advertisement = {.host = host, .worker_address = worker_.Address()};
  for (const MemoryRegion& region : regions) {
    ZP_ASSIGN_OR_RETURN(ucx::RemoteRegion remote, Register(region));
    advertisement.regions.push_back(std::move(remote));
  }
  advertisement_ = advertisement.ToString();
  thread_ = std::jthread([this] { Serve(); });
  return absl::OkStatus();
}

absl::StatusOr<ucx::RemoteRegion> UcxMemoryServer::Register(const MemoryRegion& region) {
  ucp_mem_map_params_t parameters = {};
  parameters.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                          UCP_MEM_MAP_PARAM_FIELD_PROT;
  parameters.address = const_cast<std::byte*>(region.bytes.data());
  parameters.length = region.bytes.size();
  parameters.prot = UCP_MEM_MAP_PROT_LOCAL_READ | UCP_MEM_MAP_PROT_REMOTE_READ;
  ucp_mem_h registration = nullptr;
  ucs_status_t status = ucp_mem_map(worker_.context(), &parameters, &registration);
  void* key = nullptr;
  size_t key_bytes = 0;
  if (status == UCS_OK) {
    registrations_.push_back(registration);
    status = ucp_rkey_pack(worker_.context(), registration, &key, &key_bytes);
  }
  if (status != UCS_OK) {
    return absl::UnavailableError(fmt::format(
        "UCX: object {} cannot be registered: {}", region.object, ucs_status_string(status)));
  }
  ucx::RemoteRegion remote = {.object = region.object,
                              .address = reinterpret_cast<uint64_t>(region.bytes.data()),
                              .size_bytes = region.bytes.size(),
                              .key = std::string(static_cast<const char*>(key), key_bytes)};
  ucp_rkey_buffer_release(key);
  return remote;
}

UcxMemoryServer::~UcxMemoryServer() {
  stop_.Signal();
  if (thread_.joinable()) {
    thread_.join();
  }
  for (ucp_mem_h registration : registrations_) {
    ucp_mem_unmap(worker_.context(), registration);
  }
}

// Answers peers that connect.
void UcxMemoryServer::Serve() {
  pollfd waits[] = {{.fd = worker_.event_fd(), .events = POLLIN, .revents = 0},
                    {.fd = stop_.number(), .events = POLLIN, .revents = 0}};
  while (waits[1].revents == 0) {
    while (worker_.Progress()) {
    }
    poll(waits, 2, worker_.Arm() ? -1 : 0);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryServer>> MakeUcxMemoryServer(
    std::span<const MemoryRegion> regions, const MemoryServerOptions& options) {
  ZP_ASSIGN_OR_RETURN(const std::string host, HostOfInterface(options.address));
  ZP_ASSIGN_OR_RETURN(ucx::Worker worker, ucx::Worker::Make());
  auto server = std::make_unique<UcxMemoryServer>(std::move(worker));
  ZP_RETURN_IF_ERROR(server->Begin(regions, host));
  return server;
}

}  // namespace zp::fabric
