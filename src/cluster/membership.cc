#include "cluster/membership.h"

#include "cluster/host_address.h"
#include "fmt/format.h"

namespace zp::cluster {

absl::Status CheckOffer(const HostOffer& offer) {
  if (offer.advertisement.size() > kMaxAdvertisementBytes) {
    return absl::InvalidArgumentError(fmt::format("advertisement has {} bytes, the limit is {}",
                                                  offer.advertisement.size(),
                                                  kMaxAdvertisementBytes));
  }
  if (offer.work_address.size() > kMaxWorkAddressBytes) {
    return absl::InvalidArgumentError(fmt::format("work_address has {} bytes, the limit is {}",
                                                  offer.work_address.size(),
                                                  kMaxWorkAddressBytes));
  }
  if (!offer.work_address.empty() && HostOf(offer.work_address).empty()) {
    return absl::InvalidArgumentError(
        fmt::format("work_address is '{}'; it must be HOST:PORT", offer.work_address));
  }
  return absl::OkStatus();
}

}  // namespace zp::cluster
