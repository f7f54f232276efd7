// The experts that this process keeps in its memory: one run of bytes that its ranks read in place
// and that peers may read from afar.
//
// Thread safety: blobs of different experts may be filled from different threads before serving;
// immutable from then on. Ownership: owns the bytes; shared by the ranks of the process.
#pragma once

#include <span>

#include "experts/placement.h"
#include "memory/buffer.h"

namespace zp::experts {

class ExpertStore {
 public:
  // Room for what `host` keeps.
  ExpertStore(Placement placement, int32_t host)
      : placement_(std::move(placement)),
        host_(host),
        bytes_(placement_.resident_count(host) * placement_.catalog().expert_bytes, "experts") {}

  const Placement& placement() const { return placement_; }
  const ExpertCatalog& catalog() const { return placement_.catalog(); }
  int32_t host() const { return host_; }

  // Null if this host does not keep the expert.
  std::byte* Find(LayerIndex layer, int32_t expert) const {
    const int64_t index = placement_.ResidentIndex(host_, layer, expert);
    return index < 0 ? nullptr : bytes_.data() + index * catalog().expert_bytes;
  }
  // REQUIRES: this host keeps the expert.
  std::span<std::byte> Blob(LayerIndex layer, int32_t expert) {
    return {Find(layer, expert), catalog().expert_bytes};
  }
  std::span<const std::byte> bytes() const { return bytes_.bytes(); }

 private:
  const Placement placement_;
  const int32_t host_;
  const memory::Buffer bytes_;
};

}  // namespace zp::experts
