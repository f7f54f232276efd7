// Tokens that go to the experts: each expert belongs to one rank, rows travel to the ranks of their
// experts and their sums come back. The baseline that gathering is measured against.
//
// A row travels once to each rank that has experts of it, in activation_dtype; that rank runs the
// rows of all ranks together and sends one partial sum a row back, in activation_dtype; the home
// rank adds the partial sums in rising order of the ranks. So a row's result depends on the row and
// the number of ranks alone, not on its home, but is rounded once more for each rank.
//
// A layer goes in steps, one a chunk. All ranks take part in every step of a layer, also those that
// have fewer chunks or none: EndLayer serves the others until all are through. No rank needs to
// know what the others have.
//
// Thread safety: engine thread only.
// Ownership: the exchange, the kernels and the blobs must outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "fabric/exchange.h"
#include "memory/buffer.h"
#include "model/moe_block.h"

namespace zp::model {

// The rank that an expert belongs to: neighbouring experts, shares that differ by at most one.
constexpr int32_t OwnerOfExpert(int32_t expert, int32_t expert_count, int32_t rank_count) {
  return static_cast<int32_t>(int64_t{expert} * rank_count / expert_count);
}

class DispatchedMoe final : public MoeBlock {
 public:
  // The blobs of a layer's experts, [expert_count]; only this rank's are looked at.
  using LocalBlobs = std::function<std::span<const std::byte* const>(int32_t layer)>;

  DispatchedMoe(std::vector<bool> layer_is_moe,
                const ops::ExpertLayout& layout,
                int32_t expert_count,
                LocalBlobs local_blobs,
                fabric::Exchange& exchange,
                ops::Kernels& kernels);

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
  // What a rank says of itself at the beginning of a step.
  struct Header {
    int32_t layer = 0;
    int32_t is_done = 0;  // no more rows in this layer
    int64_t row_count = 0;
    int64_t pair_count = 0;
  };
  struct Pair {
    int32_t expert = 0;
    float weight = 0;
  };
  // Rows of one rank for the experts of one rank.
  struct Parcel {
    Header header;
    std::vector<int32_t> rows;         // of the chunk; empty if it came from another rank
    std::vector<uint8_t> pair_counts;  // [row_count]
    std::vector<Pair> pairs;           // [pair_count], those of the first row first

    void Clear();
  };

  void SortRows(const ops::Routing& routing, int64_t row_count);
  void ClearParcels();
  // One step: true if all ranks are done with the layer, and then nothing else has happened.
  absl::StatusOr<bool> Step(
      int32_t layer, bool is_done, ops::ConstMatrix x, ops::Matrix residual, PassProfile& profile);
  absl::Status SwapHeaders(int32_t layer, bool is_done);
  void JoinOwnRows(ops::ConstMatrix x);
  absl::Status SwapRows(ops::ConstMatrix x);
  absl::Status CheckReceived(int32_t source) const;
  ops::Routing JoinRouting();
  void RunExperts(int32_t layer);
  absl::Status SwapPartials();
  void AddPartials(ops::Matrix residual) const;
  absl::Status Swap(PassProfile& profile, const std::function<absl::Status()>& step);

  int64_t model_dim() const { return layout_.model_dim; }
  size_t row_bytes() const { return model_dim() * spec::SizeOf(dtype_); }
  // Rows [begin, begin + count) of a buffer of activations.
  std::span<std::byte> RowsOf(const memory::Buffer& buffer, int64_t begin, int64_t count) const;
  // What this rank has computed for all ranks, as it travels.
  const memory::Buffer& local_sums() const {
    return dtype_ == spec::DType::kF32 ? sums_ : rounded_sums_;
  }
  void ClearMessages();

  const std::vector<bool> layer_is_moe_;
  const ops::ExpertLayout layout_;
  const int32_t expert_count_;
  const LocalBlobs local_blobs_;
  fabric::Exchange& exchange_;
  ops::Kernels& kernels_;
  const spec::DType dtype_;  // of what travels
  const int32_t rank_;
  const int32_t rank_count_;

  std::vector<int32_t> owners_;   // [expert_count]
  std::vector<Parcel> outgoing_;  // [rank]; this rank's own stays here
  std::vector<Parcel> incoming_;  // [rank]; of this rank, empty
  std::vector<fabric::SendParts> send_;
  std::vector<fabric::ReceiveParts> receive_;

  // Rows of all ranks together, those of each beginning at row_begins_[rank].
  std::vector<int64_t> row_begins_;  // [rank + 1]
  memory::Buffer rows_;              // [row_begins_.back(), model_dim]
  memory::Buffer sums_;              // f32, beside rows_
  memory::Buffer rounded_sums_;      // beside rows_; where activations are not f32
  std::vector<int32_t> expert_ids_;  // the joint routing
  std::vector<float> expert_weights_;

  std::vector<int64_t> partial_begins_;  // [rank + 1]
  memory::Buffer partials_;  // that came back: the rows of outgoing_[rank] at partial_begins_[rank]

  double exchange_seconds_ = 0;  // of this layer
  int64_t received_bytes_ = 0;
};

}  // namespace zp::model
