#include "model/dispatched_moe.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace zp::model {
namespace {

// Overlapped: rows, experts, sums.
constexpr int kOverlappedSlots = 3;

ops::Routing Slice(const ops::Routing& routing, int64_t begin, int64_t count) {
  const int64_t k = routing.experts_per_token;
  return {routing.expert_ids.subspan(begin * k, count * k),
          routing.expert_weights.subspan(begin * k, count * k),
          k};
}

}  // namespace

std::vector<int32_t> OwnersOfExperts(int32_t expert_count, int32_t rank_count) {
  std::vector<int32_t> owners(expert_count);
  for (int32_t expert = 0; expert < expert_count; ++expert) {
    owners[expert] = OwnerOfExpert(expert, expert_count, rank_count);
  }
  return owners;
}

DispatchedMoe::DispatchedMoe(std::vector<bool> layer_is_moe,
                             const ops::ExpertLayout& layout,
                             const std::vector<int32_t>& owners,
                             LocalBlobs local_blobs,
                             fabric::Exchange& exchange,
                             ops::Kernels& kernels,
                             const DispatchOptions& options)
    : layer_is_moe_(std::move(layer_is_moe)),
      local_blobs_(std::move(local_blobs)),
      options_(options),
      courier_(options.overlaps) {
  for (int slot = 0; slot < (options.overlaps ? kOverlappedSlots : 1); ++slot) {
    slots_.emplace_back(std::make_unique<DispatchPart>(
        layout, owners, /*keeps_rows=*/options.overlaps, exchange, kernels));
  }
}

void DispatchedMoe::BeginLayer(int32_t) {
  exchange_seconds_ = 0;
  received_bytes_ = 0;
}

absl::Status DispatchedMoe::Run(int32_t layer,
                                ops::ConstMatrix x,
                                const ops::Routing& routing,
                                ops::Matrix residual,
                                PassProfile& profile) {
  const int64_t part_rows = options_.part_rows > 0 ? options_.part_rows : x.rows;
  for (int64_t begin = 0; begin < x.rows; begin += part_rows) {
    const int64_t count = std::min(part_rows, x.rows - begin);
    ZP_RETURN_IF_ERROR(Step(layer,
                            /*is_done=*/false,
                            x.Rows(begin, count),
                            Slice(routing, begin, count),
                            residual.Rows(begin, count),
                            profile)
                           .status());
  }
  return absl::OkStatus();
}

absl::Status DispatchedMoe::EndLayer(int32_t layer, PassProfile& profile) {
  bool is_everyone_done = false;
  while (!is_everyone_done) {
    ZP_ASSIGN_OR_RETURN(is_everyone_done, Step(layer, /*is_done=*/true, {}, {}, {}, profile));
  }
  if (computed_ != nullptr) {
    ZP_RETURN_IF_ERROR(Finish(*computed_, profile));
  }
  sent_ = computed_ = nullptr;
  profile.RecordGather(exchange_seconds_, received_bytes_, {});
  return absl::OkStatus();
}

absl::Status DispatchedMoe::ServePass(PassProfile& profile) {
  for (int32_t layer = 0; layer < static_cast<int32_t>(layer_is_moe_.size()); ++layer) {
    if (layer_is_moe_[layer]) {
      profile.BeginLayer(layer);
      BeginLayer(layer);
      ZP_RETURN_IF_ERROR(EndLayer(layer, profile));
    }
  }
  profile.EndLayers();
  return absl::OkStatus();
}

absl::StatusOr<bool> DispatchedMoe::Step(int32_t layer,
                                         bool is_done,
                                         ops::ConstMatrix x,
                                         const ops::Routing& routing,
                                         ops::Matrix residual,
                                         PassProfile& profile) {
  Slot& slot = slots_[next_slot_];
  next_slot_ = (next_slot_ + 1) % slots_.size();
  profile.Timed(Op::kFfn, [&] { slot.part->SortRows(layer, is_done, x, routing, residual); });
  SendRows(slot, profile);
  ZP_RETURN_IF_ERROR(options_.overlaps ? StepOverlapped(layer, slot, profile)
                                       : StepAlone(layer, slot, profile));
  if (!is_done) {
    return false;
  }
  ZP_RETURN_IF_ERROR(Await(slot.rows_posted, profile));
  return slot.part->is_everyone_done();
}

absl::Status DispatchedMoe::StepAlone(int32_t layer, Slot& slot, PassProfile& profile) {
  ZP_RETURN_IF_ERROR(Await(slot.rows_posted, profile));
  if (slot.part->is_everyone_done()) {
    return absl::OkStatus();
  }
  ZP_RETURN_IF_ERROR(RunExperts(layer, slot, profile));
  return Finish(slot, profile);
}

// While the rows of `slot` travel: the experts of the part before, whose sums then go home, and the
// sums of the part before that.
absl::Status DispatchedMoe::StepOverlapped(int32_t layer, Slot& slot, PassProfile& profile) {
  if (sent_ != nullptr) {
    ZP_RETURN_IF_ERROR(RunExperts(layer, *sent_, profile));
  }
  if (computed_ != nullptr) {
    ZP_RETURN_IF_ERROR(Finish(*computed_, profile));
  }
  computed_ = std::exchange(sent_, &slot);
  return absl::OkStatus();
}

// A courier without a thread does it here and now: that is exposed wait.
void DispatchedMoe::SendRows(Slot& slot, PassProfile& profile) {
  slot.rows_posted = profile.Timed(Op::kWeightWait, [&] {
    return courier_.Post([part = slot.part.get()] { return part->SwapRows(); });
  });
}

absl::Status DispatchedMoe::RunExperts(int32_t layer, Slot& slot, PassProfile& profile) {
  ZP_RETURN_IF_ERROR(Await(slot.rows_posted, profile));
  profile.Timed(Op::kFfn, [&] { slot.part->RunExperts(local_blobs_(layer)); });
  slot.sums_posted = profile.Timed(Op::kWeightWait, [&] {
    return courier_.Post([part = slot.part.get()] { return part->SwapSums(); });
  });
  return absl::OkStatus();
}

absl::Status DispatchedMoe::Finish(Slot& slot, PassProfile& profile) {
  ZP_RETURN_IF_ERROR(Await(slot.sums_posted, profile));
  profile.Timed(Op::kFfn, [&] { slot.part->AddSums(); });
  exchange_seconds_ += slot.part->exchange_seconds();
  received_bytes_ += slot.part->received_bytes();
  return absl::OkStatus();
}

absl::Status DispatchedMoe::Await(uint64_t posted, PassProfile& profile) {
  return profile.Timed(Op::kWeightWait, [&] { return courier_.Await(posted); });
}

}  // namespace zp::model
