// Every expert in this rank's memory: nothing moves, nothing is waited for.
//
// Thread safety: blobs of different experts may be filled from different threads before serving;
// then as ExpertProvider. Ownership: owns the experts' bytes.
#pragma once

#include <vector>

#include "experts/expert_provider.h"
#include "memory/buffer.h"

namespace zp::experts {

class ResidentExperts : public ExpertProvider {
 public:
  // Room for `expert_count` blobs of `blob_bytes` in each layer of `layer_has_experts` that is
  // true. REQUIRES: blob_bytes is a multiple of 64.
  ResidentExperts(const std::vector<bool>& layer_has_experts,
                  int32_t expert_count,
                  size_t blob_bytes);

  std::span<std::byte> Blob(LayerIndex layer, int32_t global_expert);

  int32_t window_slot_count() const override { return kSlotCount; }
  GatherTicket StartGather(LayerIndex layer) override;
  std::span<const std::byte* const> Wait(const GatherTicket& ticket) override;
  double exposed_wait_seconds() const override { return 0; }

 private:
  static constexpr int32_t kSlotCount =
      2;  // the layer in use and the next, as a gathering provider would have

  void Release(int32_t slot) override;

  const size_t blob_bytes_;
  std::vector<memory::Buffer> layer_bytes_;                 // [layer]
  std::vector<std::vector<const std::byte*>> layer_blobs_;  // [layer][expert]
  bool slot_taken_[kSlotCount] = {};
};

}  // namespace zp::experts
