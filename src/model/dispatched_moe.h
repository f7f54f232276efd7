// Tokens that go to the experts: each expert belongs to one rank, rows travel to the ranks of their
// experts and their sums come back. The baseline that gathering is measured against.
//
// A row travels once to each rank that has experts of it, in activation_dtype; that rank runs the
// rows of all ranks together and sends one partial sum a row back, in activation_dtype; the home
// rank adds the partial sums in rising order of the ranks. So a row's result depends on the row and
// the number of ranks alone, not on its home, but is rounded once more for each rank.
//
// A layer goes in steps, one a part (a chunk or less). All ranks take part in every step of a
// layer, also those that have fewer parts or none: EndLayer serves the others until all are
// through. No rank needs to know what the others have.
//
// Overlapped, three parts are under way: the rows of one travel while the experts of the one before
// run and the sums of the one before that go home, and what comes after a chunk in the model runs
// while its last rows travel. Every rank still does the same steps in the same order:
// rows(i), sums(i - 1), rows(i + 1), sums(i), ...
//
// Thread safety: engine thread only; overlapped, one internal thread drives the exchange.
// Ownership: the exchange, the kernels and the blobs must outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "fabric/exchange.h"
#include "model/courier.h"
#include "model/dispatch_part.h"
#include "model/moe_block.h"

namespace zp::model {

struct DispatchOptions {
  int64_t part_rows = 0;  // rows of a chunk that travel together; 0: whole chunks
  bool overlaps = false;  // parts one behind the other instead of one after the other
};

// The rank that an expert belongs to where each has one: neighbouring experts, shares that differ
// by at most one.
constexpr int32_t OwnerOfExpert(int32_t expert, int32_t expert_count, int32_t rank_count) {
  return static_cast<int32_t>(int64_t{expert} * rank_count / expert_count);
}
std::vector<int32_t> OwnersOfExperts(int32_t expert_count, int32_t rank_count);

class DispatchedMoe final : public MoeBlock {
 public:
  // The blobs of a layer's experts, [expert_count]; only this rank's are looked at.
  using LocalBlobs = std::function<std::span<const std::byte* const>(int32_t layer)>;

  // `owners`: [expert_count], the rank to which rows for an expert go; this one for just those that
  // it keeps.
  DispatchedMoe(std::vector<bool> layer_is_moe,
                const ops::ExpertLayout& layout,
                const std::vector<int32_t>& owners,
                LocalBlobs local_blobs,
                fabric::Exchange& exchange,
                ops::Kernels& kernels,
                const DispatchOptions& options = {});

  void BeginLayer(int32_t layer) override;
  // Errors here and of Run: those of the exchange, after which this block is of no more use, and
  // Internal for a message that makes no sense.
  absl::Status EndLayer(int32_t layer, PassProfile& profile) override;
  absl::Status Run(int32_t layer,
                   ops::ConstMatrix x,
                   const ops::Routing& routing,
                   ops::Matrix residual,
                   PassProfile& profile) override;

  // Takes part in a pass of the other ranks without rows of its own. A rank that has no work owes
  // them this: every pass is one of all ranks. `profile` is cleared for the model's layers.
  absl::Status ServePass(PassProfile& profile);

 private:
  // A part under way.
  struct Slot {
    explicit Slot(std::unique_ptr<DispatchPart> made) : part(std::move(made)) {}

    std::unique_ptr<DispatchPart> part;
    uint64_t rows_posted = 0;  // the courier's numbers
    uint64_t sums_posted = 0;
  };

  // One step: true if all ranks are done with the layer; asked only of a rank that is itself.
  absl::StatusOr<bool> Step(int32_t layer,
                            bool is_done,
                            ops::ConstMatrix x,
                            const ops::Routing& routing,
                            ops::Matrix residual,
                            PassProfile& profile);
  absl::Status StepAlone(int32_t layer, Slot& slot, PassProfile& profile);
  absl::Status StepOverlapped(int32_t layer, Slot& slot, PassProfile& profile);
  void SendRows(Slot& slot, PassProfile& profile);
  absl::Status RunExperts(int32_t layer, Slot& slot, PassProfile& profile);
  absl::Status Finish(Slot& slot, PassProfile& profile);
  absl::Status Await(uint64_t posted, PassProfile& profile);

  const std::vector<bool> layer_is_moe_;
  const LocalBlobs local_blobs_;
  const DispatchOptions options_;
  std::vector<Slot> slots_;  // used in turn
  size_t next_slot_ = 0;
  Slot* sent_ = nullptr;      // overlapped: its rows are on their way or here
  Slot* computed_ = nullptr;  // overlapped: its sums are on their way home

  double exchange_seconds_ = 0;  // of this layer
  int64_t received_bytes_ = 0;
  Courier courier_;  // last: its tasks use the slots
};

}  // namespace zp::model
