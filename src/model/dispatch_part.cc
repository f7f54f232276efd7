#include "model/dispatch_part.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/bfloat16.h"
#include "base/check.h"
#include "fmt/format.h"

namespace zp::model {
namespace {

// Beyond any chunk: a header that says more is not believed.
constexpr int64_t kMaxRows = 1 << 22;
// Elements that the loops below take at once, so that the compiler makes vectors of them.
constexpr int64_t kBlock = 16;

using base::BFloat16;

void RoundTo(const float* __restrict from, BFloat16* __restrict to, int64_t count) {
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    for (int64_t j = 0; j < kBlock; ++j) {
      to[i + j] = BFloat16(from[i + j]);
    }
  }
  for (; i < count; ++i) {
    to[i] = BFloat16(from[i]);
  }
}

template <typename T>
void AddTo(float* __restrict sum, const T* __restrict values, int64_t count) {
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    for (int64_t j = 0; j < kBlock; ++j) {
      sum[i + j] += static_cast<float>(values[i + j]);
    }
  }
  for (; i < count; ++i) {
    sum[i] += static_cast<float>(values[i]);
  }
}

template <typename T>
std::span<const std::byte> BytesOf(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

template <typename T>
std::span<std::byte> WritableBytesOf(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

}  // namespace

void DispatchPart::Parcel::Clear() {
  header = {};
  rows.clear();
  pair_counts.clear();
  pairs.clear();
}

DispatchPart::DispatchPart(const ops::ExpertLayout& layout,
                           std::vector<int32_t> owners,
                           bool keeps_rows,
                           fabric::Exchange& exchange,
                           ops::Kernels& kernels)
    : layout_(layout),
      keeps_rows_(keeps_rows),
      exchange_(exchange),
      kernels_(kernels),
      dtype_(kernels.activation_dtype()),
      rank_(exchange.rank()),
      rank_count_(exchange.rank_count()),
      owners_(std::move(owners)),
      outgoing_(rank_count_),
      incoming_(rank_count_),
      send_(rank_count_),
      receive_(rank_count_),
      kept_begins_(rank_count_ + 1),
      row_begins_(rank_count_ + 1),
      partial_begins_(rank_count_ + 1) {
  ZP_CHECK(dtype_ == spec::DType::kF32 || dtype_ == spec::DType::kBf16) << spec::NameOf(dtype_);
  for (const int32_t owner : owners_) {
    ZP_CHECK(owner >= 0 && owner < rank_count_) << owner;
  }
}

void DispatchPart::SortRows(int32_t layer,
                            bool is_done,
                            ops::ConstMatrix x,
                            const ops::Routing& routing,
                            ops::Matrix residual) {
  layer_ = layer;
  x_ = x;
  residual_ = residual;
  exchange_seconds_ = 0;
  received_bytes_ = 0;
  std::ranges::for_each(outgoing_, &Parcel::Clear);
  const int64_t k = routing.experts_per_token;
  ZP_CHECK(k <= UINT8_MAX) << k;
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t pair = row * k; pair < (row + 1) * k; ++pair) {
      const int32_t expert = routing.expert_ids[pair];
      ZP_CHECK(IsExpert(expert)) << expert;
      Parcel& parcel = outgoing_[owners_[expert]];
      if (parcel.rows.empty() || parcel.rows.back() != row) {
        parcel.rows.push_back(static_cast<int32_t>(row));
        parcel.pair_counts.push_back(0);
      }
      ++parcel.pair_counts.back();
      parcel.pairs.push_back({expert, routing.expert_weights[pair]});
    }
  }
  for (Parcel& parcel : outgoing_) {
    parcel.header = {.layer = layer,
                     .is_done = is_done,
                     .row_count = std::ssize(parcel.rows),
                     .pair_count = std::ssize(parcel.pairs)};
  }
  incoming_[rank_].header = {.layer = layer, .is_done = is_done};
  if (keeps_rows_) {
    KeepRows();
  }
}

// In the order in which they travel.
void DispatchPart::KeepRows() {
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    kept_begins_[rank + 1] = kept_begins_[rank] + std::ssize(outgoing_[rank].rows);
  }
  kept_rows_.EnsureBytes(kept_begins_.back() * row_bytes(), "dispatched rows");
  std::byte* to = kept_rows_.data();
  for (const Parcel& parcel : outgoing_) {
    for (const int32_t row : parcel.rows) {
      std::memcpy(to, x_.Rows(row, 1).data, row_bytes());
      to += row_bytes();
    }
  }
}

void DispatchPart::ClearMessages() {
  std::ranges::for_each(send_, &fabric::SendParts::clear);
  std::ranges::for_each(receive_, &fabric::ReceiveParts::clear);
}

std::span<std::byte> DispatchPart::RowsOf(const memory::Buffer& buffer,
                                          int64_t begin,
                                          int64_t count) const {
  return buffer.bytes().subspan(begin * row_bytes(), count * row_bytes());
}

absl::Status DispatchPart::SwapRows() {
  ZP_RETURN_IF_ERROR(SwapHeaders());
  is_everyone_done_ = std::ranges::all_of(
      incoming_, [](const Parcel& parcel) { return parcel.header.is_done != 0; });
  if (is_everyone_done_) {
    return absl::OkStatus();
  }
  MakeRoom();
  return SwapRouting();
}

absl::Status DispatchPart::Swap() {
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = exchange_.Swap(send_, receive_);
  exchange_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

absl::Status DispatchPart::SwapHeaders() {
  ClearMessages();
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    if (rank != rank_) {
      send_[rank].push_back(std::as_bytes(std::span(&outgoing_[rank].header, 1)));
      receive_[rank].push_back(std::as_writable_bytes(std::span(&incoming_[rank].header, 1)));
    }
  }
  ZP_RETURN_IF_ERROR(Swap());
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const Header& header = incoming_[rank].header;
    if (header.layer != layer_ || header.row_count < 0 || header.row_count > kMaxRows ||
        header.pair_count < header.row_count || header.pair_count > header.row_count * UINT8_MAX) {
      return absl::InternalError(
          fmt::format("rank {} speaks of layer {}, {} rows and {} pairs; here is layer {}",
                      rank,
                      header.layer,
                      header.row_count,
                      header.pair_count,
                      layer_));
    }
  }
  return absl::OkStatus();
}

// For the rows of all ranks, and for the partial sums that will come back.
void DispatchPart::MakeRoom() {
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    row_begins_[rank + 1] = row_begins_[rank] + parcel_of(rank).header.row_count;
    partial_begins_[rank + 1] =
        partial_begins_[rank] + (rank == rank_ ? 0 : std::ssize(outgoing_[rank].rows));
  }
  rows_.EnsureBytes(row_begins_.back() * row_bytes(), "dispatched rows");
  partials_.EnsureBytes(partial_begins_.back() * row_bytes(), "dispatched rows");
}

absl::Status DispatchPart::SwapRouting() {
  ClearMessages();
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    if (rank == rank_) {
      continue;
    }
    const Parcel& sent = outgoing_[rank];
    send_[rank] = {BytesOf(sent.pairs), BytesOf(sent.pair_counts)};
    if (keeps_rows_) {
      send_[rank].push_back(RowsOf(kept_rows_, kept_begins_[rank], sent.header.row_count));
    } else {
      for (const int32_t row : sent.rows) {
        send_[rank].emplace_back(x_.Rows(row, 1).data, row_bytes());
      }
    }
    Parcel& received = incoming_[rank];
    received.pairs.resize(received.header.pair_count);
    received.pair_counts.resize(received.header.row_count);
    receive_[rank] = {WritableBytesOf(received.pairs),
                      WritableBytesOf(received.pair_counts),
                      RowsOf(rows_, row_begins_[rank], received.header.row_count)};
    received_bytes_ += std::ssize(receive_[rank][0]) + std::ssize(receive_[rank][1]) +
                       std::ssize(receive_[rank][2]);
  }
  ZP_RETURN_IF_ERROR(Swap());
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    ZP_RETURN_IF_ERROR(rank == rank_ ? absl::OkStatus() : CheckReceived(rank));
  }
  return absl::OkStatus();
}

absl::Status DispatchPart::CheckReceived(int32_t source) const {
  const Parcel& parcel = incoming_[source];
  int64_t pair_count = 0;
  for (const uint8_t count : parcel.pair_counts) {
    pair_count += count;
  }
  const auto is_mine = [&](const Pair& pair) {
    return IsExpert(pair.expert) && owners_[pair.expert] == rank_;
  };
  if (pair_count != std::ssize(parcel.pairs) || !std::ranges::all_of(parcel.pairs, is_mine)) {
    return absl::InternalError(
        fmt::format("rank {} sent rows for experts that rank {} does not have", source, rank_));
  }
  return absl::OkStatus();
}

void DispatchPart::JoinOwnRows() {
  std::byte* to = RowsOf(rows_, row_begins_[rank_], 0).data();
  if (keeps_rows_) {
    std::memcpy(to,
                RowsOf(kept_rows_, kept_begins_[rank_], 0).data(),
                outgoing_[rank_].rows.size() * row_bytes());
    return;
  }
  for (const int32_t row : outgoing_[rank_].rows) {
    std::memcpy(to, x_.Rows(row, 1).data, row_bytes());
    to += row_bytes();
  }
}

// One routing for the rows of all ranks, as wide as the row with the most experts here.
ops::Routing DispatchPart::JoinRouting() {
  int64_t width = 1;
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    for (const uint8_t count : parcel_of(rank).pair_counts) {
      width = std::max<int64_t>(width, count);
    }
  }
  expert_ids_.assign(row_begins_.back() * width, ops::Routing::kNoExpert);
  expert_weights_.assign(row_begins_.back() * width, 0.0f);
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const Parcel& parcel = parcel_of(rank);
    auto pair = parcel.pairs.begin();
    int64_t row = row_begins_[rank];
    for (const uint8_t count : parcel.pair_counts) {
      for (int64_t place = row * width; place < row * width + count; ++place, ++pair) {
        expert_ids_[place] = pair->expert;
        expert_weights_[place] = pair->weight;
      }
      ++row;
    }
  }
  return {expert_ids_, expert_weights_, width};
}

void DispatchPart::RunExperts(std::span<const std::byte* const> blobs) {
  JoinOwnRows();
  const int64_t row_count = row_begins_.back();
  const ops::Routing routing = JoinRouting();
  const ops::ConstMatrix rows{rows_.data(), dtype_, row_count, model_dim(), model_dim()};
  const size_t sum_bytes = row_count * model_dim() * sizeof(float);
  sums_.EnsureBytes(sum_bytes, "dispatched sums");
  if (row_count == 0) {
    return;
  }
  std::memset(sums_.data(), 0, sum_bytes);
  const ops::Matrix sums{sums_.data(), spec::DType::kF32, row_count, model_dim(), model_dim()};
  kernels_.ExpertFfn(rows, routing, {layout_, blobs}, sums);
  if (dtype_ == spec::DType::kBf16) {
    rounded_sums_.EnsureBytes(row_count * row_bytes(), "dispatched sums");
    RoundTo(sums_.as<float>(), rounded_sums_.as<BFloat16>(), row_count * model_dim());
  }
}

absl::Status DispatchPart::SwapSums() {
  ClearMessages();
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    if (rank != rank_) {
      send_[rank].push_back(
          RowsOf(local_sums(), row_begins_[rank], row_begins_[rank + 1] - row_begins_[rank]));
      receive_[rank].push_back(
          RowsOf(partials_, partial_begins_[rank], std::ssize(outgoing_[rank].rows)));
      received_bytes_ += std::ssize(receive_[rank][0]);
    }
  }
  return Swap();
}

// This rank's own sums are rounded like the others: a row's result is the same on any home rank.
void DispatchPart::AddSums() const {
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const bool is_own = rank == rank_;
    const std::byte* partial = is_own ? RowsOf(local_sums(), row_begins_[rank], 0).data()
                                      : RowsOf(partials_, partial_begins_[rank], 0).data();
    for (const int32_t row : outgoing_[rank].rows) {
      float* const sum = residual_.row<float>(row);
      if (dtype_ == spec::DType::kF32) {
        AddTo(sum, reinterpret_cast<const float*>(partial), model_dim());
      } else {
        AddTo(sum, reinterpret_cast<const BFloat16*>(partial), model_dim());
      }
      partial += row_bytes();
    }
  }
}

}  // namespace zp::model
