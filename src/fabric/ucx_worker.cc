#include "fabric/ucx_worker.h"

#include <cstring>
#include <sstream>

#include "base/check.h"
#include "fmt/format.h"

namespace zp::fabric::ucx {

absl::StatusOr<Worker> Worker::Make() {
  const auto failed = [](const char* what, ucs_status_t status) {
    return absl::UnavailableError(fmt::format("UCX: {}: {}", what, ucs_status_string(status)));
  };
  Worker result;
  ucp_params_t parameters = {};
  parameters.field_mask = UCP_PARAM_FIELD_FEATURES;
  parameters.features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
  if (const ucs_status_t status = ucp_init(&parameters, nullptr, &result.context_);
      status != UCS_OK) {
    return failed("no context", status);
  }
  ucp_worker_params_t worker_parameters = {};
  worker_parameters.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_parameters.thread_mode =
      UCS_THREAD_MODE_SERIALIZED;  // made in one thread, used in another
  if (const ucs_status_t status =
          ucp_worker_create(result.context_, &worker_parameters, &result.worker_);
      status != UCS_OK) {
    return failed("no worker", status);
  }
  if (const ucs_status_t status = ucp_worker_get_efd(result.worker_, &result.event_fd_);
      status != UCS_OK) {
    return failed("no event descriptor", status);
  }
  return result;
}

Worker::~Worker() {
  if (worker_ != nullptr) {
    ucp_worker_destroy(worker_);
  }
  if (context_ != nullptr) {
    ucp_cleanup(context_);
  }
}

std::string Worker::Address() const {
  ucp_worker_attr_t attributes = {};
  attributes.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS;
  const ucs_status_t status = ucp_worker_query(worker_, &attributes);
  ZP_CHECK(status == UCS_OK) << ucs_status_string(status);
  std::string address(reinterpret_cast<const char*>(attributes.address), attributes.address_length);
  ucp_worker_release_address(worker_, attributes.address);
  return address;
}

std::string Advertisement::ToString() const {
  std::string text = fmt::format("ucx {} {} {}\n", host, worker_address.size(), regions.size());
  text += worker_address;
  const auto put = [&](const auto& number) {
    text.append(reinterpret_cast<const char*>(&number), sizeof(number));
  };
  for (const RemoteRegion& region : regions) {
    put(region.object);
    put(region.address);
    put(region.size_bytes);
    put(static_cast<uint32_t>(region.key.size()));
    text += region.key;
  }
  return text;
}

absl::StatusOr<Advertisement> Advertisement::Parse(const std::string& text) {
  std::istringstream stream(text);
  std::string transport;
  Advertisement result;
  size_t address_bytes = 0, region_count = 0;
  stream >> transport >> result.host >> address_bytes >> region_count;
  const auto take = [&](auto& number) {
    stream.read(reinterpret_cast<char*>(&number), sizeof(number));
  };
  const auto take_bytes = [&](std::string& bytes, size_t count) {
    if (count <= text.size()) {
      bytes.resize(count);
      stream.read(bytes.data(), static_cast<std::streamsize>(count));
    }
    return count <= text.size() && stream.good();
  };
  bool is_good = stream.good() && transport == "ucx" && stream.get() == '\n' && address_bytes > 0 &&
                 take_bytes(result.worker_address, address_bytes);
  while (is_good && result.regions.size() < region_count) {
    RemoteRegion region;
    uint32_t key_bytes = 0;
    take(region.object);
    take(region.address);
    take(region.size_bytes);
    take(key_bytes);
    is_good = stream.good() && take_bytes(region.key, key_bytes);
    result.regions.push_back(std::move(region));
  }
  if (!is_good) {
    return absl::InvalidArgumentError("not the advertisement of a memory server over UCX");
  }
  return result;
}

}  // namespace zp::fabric::ucx
