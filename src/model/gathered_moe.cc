#include "model/gathered_moe.h"

#include <utility>

#include "base/check.h"

namespace zp::model {

GatheredMoe::GatheredMoe(std::vector<bool> layer_is_moe,
                         const ops::ExpertLayout& layout,
                         experts::ExpertProvider& experts,
                         ops::Kernels& kernels)
    : layer_is_moe_(std::move(layer_is_moe)),
      layout_(layout),
      experts_(experts),
      kernels_(kernels) {}

// Releases the banks before `layer` and fills the window with those that follow it.
void GatheredMoe::BeginLayer(int32_t layer) {
  while (!window_.empty() && window_.front().layer() != layer) {
    window_.pop_front();
  }
  int32_t next = window_.empty() ? layer : NextMoeLayer(window_.back().layer());
  while (static_cast<int32_t>(window_.size()) < experts_.window_slot_count()) {
    window_.push_back(experts_.StartGather(next));
    next = NextMoeLayer(next);
  }
}

absl::Status GatheredMoe::Run(int32_t layer,
                              ops::ConstMatrix x,
                              const ops::Routing& routing,
                              ops::Matrix residual,
                              PassProfile& profile) {
  ZP_CHECK(!window_.empty() && window_.front().layer() == layer) << "layer " << layer;
  const experts::GatherTicket& ticket = window_.front();
  const auto blobs = profile.Timed(Op::kWeightWait, [&] { return experts_.Wait(ticket); });
  if (!blobs.ok()) {
    window_.clear();
    return blobs.status();
  }
  const ops::ExpertBank bank{layout_, *blobs};
  profile.Timed(Op::kFfn, [&] { kernels_.ExpertFfn(x, routing, bank, residual); });
  return absl::OkStatus();
}

// Once a layer, however many chunks it had.
absl::Status GatheredMoe::EndLayer(int32_t layer, PassProfile& profile) {
  ZP_CHECK(!window_.empty() && window_.front().layer() == layer) << "layer " << layer;
  const experts::GatherReport& report = experts_.report(window_.front());
  profile.RecordGather(report.seconds, report.bytes, report.bytes_by_source);
  return absl::OkStatus();
}

int32_t GatheredMoe::NextMoeLayer(int32_t layer) const {
  const auto layer_count = static_cast<int32_t>(layer_is_moe_.size());
  int32_t next = layer;
  do {
    next = (next + 1) % layer_count;
  } while (!layer_is_moe_[next]);
  return next;
}

absl::Status GatheredMoe::AwaitWindow() {
  for (const experts::GatherTicket& ticket : window_) {
    ZP_RETURN_IF_ERROR(experts_.Wait(ticket).status());
  }
  return absl::OkStatus();
}

}  // namespace zp::model
