#include "experts/resident_experts.h"

#include "base/check.h"

namespace zp::experts {

ResidentExperts::ResidentExperts(const std::vector<bool>& layer_has_experts,
                                 int32_t expert_count,
                                 size_t blob_bytes)
    : blob_bytes_(blob_bytes) {
  for (const bool has_experts : layer_has_experts) {
    const int32_t count = has_experts ? expert_count : 0;
    memory::Buffer bytes(count * blob_bytes, "experts");
    std::vector<const std::byte*> blobs;
    blobs.reserve(count);
    for (int32_t expert = 0; expert < count; ++expert) {
      blobs.push_back(bytes.data() + expert * blob_bytes);
    }
    layer_bytes_.push_back(std::move(bytes));
    layer_blobs_.push_back(std::move(blobs));
  }
}

std::span<std::byte> ResidentExperts::Blob(LayerIndex layer, int32_t global_expert) {
  return layer_bytes_[layer].bytes().subspan(global_expert * blob_bytes_, blob_bytes_);
}

GatherTicket ResidentExperts::StartGather(LayerIndex layer) {
  ZP_CHECK(!layer_blobs_[layer].empty()) << "layer " << layer << " has no experts";
  for (int32_t slot = 0; slot < kSlotCount; ++slot) {
    if (!slot_taken_[slot]) {
      slot_taken_[slot] = true;
      return GatherTicket(this, layer, slot);
    }
  }
  ZP_CHECK(false) << "more than " << kSlotCount << " tickets alive";
  std::abort();
}

std::span<const std::byte* const> ResidentExperts::Wait(const GatherTicket& ticket) {
  return layer_blobs_[ticket.layer()];
}

void ResidentExperts::Release(int32_t slot) {
  ZP_CHECK(slot_taken_[slot]) << "slot " << slot << " released twice";
  slot_taken_[slot] = false;
}

}  // namespace zp::experts
