// Rows that go to the experts together, and what comes of them: one step of the all-to-all of
// dispatched_moe.h.
//
//   SortRows .... owner: each row into the parcels of the ranks that have experts of it
//   SwapRows .... courier: lengths, then routing and rows, to and from all ranks
//   RunExperts .. owner: the rows of all ranks through the experts of this one
//   SwapSums .... courier: partial sums go home
//   AddSums ..... owner
//
// Thread safety: one step at a time; between the owner's and the courier's stands courier.h.
// Ownership: exchange, kernels and blobs must outlive it; x and the residual are the caller's, lent
// until AddSums (x only until SortRows if it keeps a copy of the rows).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fabric/exchange.h"
#include "memory/buffer.h"
#include "ops/kernels.h"

namespace zp::model {

class DispatchPart {
 public:
  // `owners`: [expert_count], the rank to which rows for an expert go; this one for just those that
  // it keeps.
  DispatchPart(const ops::ExpertLayout& layout,
               std::vector<int32_t> owners,
               bool keeps_rows,
               fabric::Exchange& exchange,
               ops::Kernels& kernels);

  // Without rows if the rank is done with the layer.
  void SortRows(int32_t layer,
                bool is_done,
                ops::ConstMatrix x,
                const ops::Routing& routing,
                ops::Matrix residual);
  // Internal for a message that makes no sense, else the exchange's.
  absl::Status SwapRows();
  // Known after SwapRows: nobody has rows, and nothing else is to happen.
  bool is_everyone_done() const { return is_everyone_done_; }
  void RunExperts(std::span<const std::byte* const> blobs);
  absl::Status SwapSums();
  void AddSums() const;

  // Of this step so far.
  double exchange_seconds() const { return exchange_seconds_; }
  int64_t received_bytes() const { return received_bytes_; }

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
    std::vector<int32_t> rows;         // of the part; empty if it came from another rank
    std::vector<uint8_t> pair_counts;  // [row_count]
    std::vector<Pair> pairs;           // [pair_count], those of the first row first

    void Clear();
  };

  void KeepRows();
  absl::Status Swap();
  absl::Status SwapHeaders();
  void MakeRoom();
  absl::Status SwapRouting();
  absl::Status CheckReceived(int32_t source) const;
  void JoinOwnRows();
  ops::Routing JoinRouting();
  void ClearMessages();

  bool IsExpert(int32_t expert) const {
    return expert >= 0 && static_cast<size_t>(expert) < owners_.size();
  }
  int64_t model_dim() const { return layout_.model_dim; }
  size_t row_bytes() const { return model_dim() * spec::SizeOf(dtype_); }
  // Rows [begin, begin + count) of a buffer of activations.
  std::span<std::byte> RowsOf(const memory::Buffer& buffer, int64_t begin, int64_t count) const;
  const Parcel& parcel_of(int32_t rank) const {
    return rank == rank_ ? outgoing_[rank] : incoming_[rank];
  }
  // What this rank has computed for all ranks, as it travels.
  const memory::Buffer& local_sums() const {
    return dtype_ == spec::DType::kF32 ? sums_ : rounded_sums_;
  }

  const ops::ExpertLayout layout_;
  const bool keeps_rows_;
  fabric::Exchange& exchange_;
  ops::Kernels& kernels_;
  const spec::DType dtype_;  // of what travels
  const int32_t rank_;
  const int32_t rank_count_;

  const std::vector<int32_t> owners_;  // [expert_count]
  int32_t layer_ = -1;
  ops::ConstMatrix x_;
  ops::Matrix residual_;
  bool is_everyone_done_ = false;

  std::vector<Parcel> outgoing_;  // [rank]; this rank's own stays here
  std::vector<Parcel> incoming_;  // [rank]; of this rank, empty
  std::vector<fabric::SendParts> send_;
  std::vector<fabric::ReceiveParts> receive_;
  std::vector<int64_t> kept_begins_;  // [rank + 1], in kept_rows_
  memory::Buffer kept_rows_;          // the rows of all parcels, if keeps_rows

  // Rows of all ranks together, those of each beginning at row_begins_[rank].
  std::vector<int64_t> row_begins_;  // [rank + 1]
  memory::Buffer rows_;              // [row_begins_.back(), model_dim]
  memory::Buffer sums_;              // f32, beside rows_
  memory::Buffer rounded_sums_;      // beside rows_; where activations are not f32
  std::vector<int32_t> expert_ids_;  // the joint routing
  std::vector<float> expert_weights_;

  std::vector<int64_t> partial_begins_;  // [rank + 1]
  memory::Buffer partials_;  // that came back: the rows of outgoing_[rank] at partial_begins_[rank]

  double exchange_seconds_ = 0;
  int64_t received_bytes_ = 0;
};

}  // namespace zp::model
