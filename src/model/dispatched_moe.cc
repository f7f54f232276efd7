#include "model/dispatched_moe.h"

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

void DispatchedMoe::Parcel::Clear() {
  header = {};
  rows.clear();
  pair_counts.clear();
  pairs.clear();
}

DispatchedMoe::DispatchedMoe(std::vector<bool> layer_is_moe,
                             const ops::ExpertLayout& layout,
                             int32_t expert_count,
                             LocalBlobs local_blobs,
                             fabric::Exchange& exchange,
                             ops::Kernels& kernels)
    : layer_is_moe_(std::move(layer_is_moe)),
      layout_(layout),
      expert_count_(expert_count),
      local_blobs_(std::move(local_blobs)),
      exchange_(exchange),
      kernels_(kernels),
      dtype_(kernels.activation_dtype()),
      rank_(exchange.rank()),
      rank_count_(exchange.rank_count()),
      owners_(expert_count),
      outgoing_(rank_count_),
      incoming_(rank_count_),
      send_(rank_count_),
      receive_(rank_count_),
      row_begins_(rank_count_ + 1),
      partial_begins_(rank_count_ + 1) {
  ZP_CHECK(dtype_ == spec::DType::kF32 || dtype_ == spec::DType::kBf16) << spec::NameOf(dtype_);
  for (int32_t expert = 0; expert < expert_count; ++expert) {
    owners_[expert] = OwnerOfExpert(expert, expert_count, rank_count_);
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
  profile.Timed(Op::kFfn, [&] { SortRows(routing, x.rows); });
  return Step(layer, false, x, residual, profile).status();
}

absl::Status DispatchedMoe::EndLayer(int32_t layer, PassProfile& profile) {
  ClearParcels();
  bool is_everyone_done = false;
  while (!is_everyone_done) {
    ZP_ASSIGN_OR_RETURN(is_everyone_done, Step(layer, true, {}, {}, profile));
  }
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

void DispatchedMoe::ClearParcels() { std::ranges::for_each(outgoing_, &Parcel::Clear); }

// Each row into the parcels of the ranks that have experts of it.
void DispatchedMoe::SortRows(const ops::Routing& routing, int64_t row_count) {
  ClearParcels();
  const int64_t k = routing.experts_per_token;
  ZP_CHECK(k <= UINT8_MAX) << k;
  for (int64_t row = 0; row < row_count; ++row) {
    for (int64_t pair = row * k; pair < (row + 1) * k; ++pair) {
      const int32_t expert = routing.expert_ids[pair];
      ZP_CHECK(expert >= 0 && expert < expert_count_) << expert;
      Parcel& parcel = outgoing_[owners_[expert]];
      if (parcel.rows.empty() || parcel.rows.back() != row) {
        parcel.rows.push_back(static_cast<int32_t>(row));
        parcel.pair_counts.push_back(0);
      }
      ++parcel.pair_counts.back();
      parcel.pairs.push_back({expert, routing.expert_weights[pair]});
    }
  }
}

absl::StatusOr<bool> DispatchedMoe::Step(
    int32_t layer, bool is_done, ops::ConstMatrix x, ops::Matrix residual, PassProfile& profile) {
  ZP_RETURN_IF_ERROR(Swap(profile, [&] { return SwapHeaders(layer, is_done); }));
  const auto is_through = [](const Parcel& parcel) { return parcel.header.is_done != 0; };
  if (is_done && std::ranges::all_of(incoming_, is_through)) {
    return true;
  }
  profile.Timed(Op::kFfn, [&] { JoinOwnRows(x); });
  ZP_RETURN_IF_ERROR(Swap(profile, [&] { return SwapRows(x); }));
  profile.Timed(Op::kFfn, [&] { RunExperts(layer); });
  ZP_RETURN_IF_ERROR(Swap(profile, [&] { return SwapPartials(); }));
  profile.Timed(Op::kFfn, [&] { AddPartials(residual); });
  return false;
}

// A step of the exchange, charged as exposed wait.
absl::Status DispatchedMoe::Swap(PassProfile& profile, const std::function<absl::Status()>& step) {
  const auto begin = PassProfile::Clock::now();
  absl::Status status = profile.Timed(Op::kWeightWait, step);
  exchange_seconds_ += std::chrono::duration<double>(PassProfile::Clock::now() - begin).count();
  return status;
}

void DispatchedMoe::ClearMessages() {
  std::ranges::for_each(send_, &fabric::SendParts::clear);
  std::ranges::for_each(receive_, &fabric::ReceiveParts::clear);
}

std::span<std::byte> DispatchedMoe::RowsOf(const memory::Buffer& buffer,
                                           int64_t begin,
                                           int64_t count) const {
  return buffer.bytes().subspan(begin * row_bytes(), count * row_bytes());
}

absl::Status DispatchedMoe::SwapHeaders(int32_t layer, bool is_done) {
  ClearMessages();
  incoming_[rank_].header = {.layer = layer, .is_done = is_done};
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    Parcel& parcel = outgoing_[rank];
    parcel.header = {.layer = layer,
                     .is_done = is_done,
                     .row_count = std::ssize(parcel.rows),
                     .pair_count = std::ssize(parcel.pairs)};
    if (rank != rank_) {
      send_[rank].push_back(std::as_bytes(std::span(&parcel.header, 1)));
      receive_[rank].push_back(std::as_writable_bytes(std::span(&incoming_[rank].header, 1)));
    }
  }
  ZP_RETURN_IF_ERROR(exchange_.Swap(send_, receive_));
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const Header& header = incoming_[rank].header;
    if (header.layer != layer || header.row_count < 0 || header.row_count > kMaxRows ||
        header.pair_count < header.row_count || header.pair_count > header.row_count * UINT8_MAX) {
      return absl::InternalError(
          fmt::format("rank {} speaks of layer {}, {} rows and {} pairs; here is layer {}",
                      rank,
                      header.layer,
                      header.row_count,
                      header.pair_count,
                      layer));
    }
  }
  return absl::OkStatus();
}

// Room for the rows of all ranks; this rank's own are put where they belong.
void DispatchedMoe::JoinOwnRows(ops::ConstMatrix x) {
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const Parcel& parcel = rank == rank_ ? outgoing_[rank] : incoming_[rank];
    row_begins_[rank + 1] = row_begins_[rank] + parcel.header.row_count;
    partial_begins_[rank + 1] =
        partial_begins_[rank] + (rank == rank_ ? 0 : std::ssize(outgoing_[rank].rows));
  }
  rows_.EnsureBytes(row_begins_.back() * row_bytes(), "dispatched rows");
  partials_.EnsureBytes(partial_begins_.back() * row_bytes(), "dispatched rows");
  const std::vector<int32_t>& rows = outgoing_[rank_].rows;
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(RowsOf(rows_, row_begins_[rank_] + static_cast<int64_t>(i), 1).data(),
                x.Rows(rows[i], 1).data,
                row_bytes());
  }
}

absl::Status DispatchedMoe::SwapRows(ops::ConstMatrix x) {
  ClearMessages();
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    if (rank == rank_) {
      continue;
    }
    const Parcel& sent = outgoing_[rank];
    send_[rank] = {BytesOf(sent.pairs), BytesOf(sent.pair_counts)};
    for (const int32_t row : sent.rows) {
      send_[rank].emplace_back(x.Rows(row, 1).data, row_bytes());
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
  ZP_RETURN_IF_ERROR(exchange_.Swap(send_, receive_));
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    ZP_RETURN_IF_ERROR(rank == rank_ ? absl::OkStatus() : CheckReceived(rank));
  }
  return absl::OkStatus();
}

absl::Status DispatchedMoe::CheckReceived(int32_t source) const {
  const Parcel& parcel = incoming_[source];
  int64_t pair_count = 0;
  for (const uint8_t count : parcel.pair_counts) {
    pair_count += count;
  }
  const auto is_mine = [&](const Pair& pair) {
    return pair.expert >= 0 && pair.expert < expert_count_ && owners_[pair.expert] == rank_;
  };
  if (pair_count != std::ssize(parcel.pairs) || !std::ranges::all_of(parcel.pairs, is_mine)) {
    return absl::InternalError(
        fmt::format("rank {} sent rows for experts that rank {} does not have", source, rank_));
  }
  return absl::OkStatus();
}

// One routing for the rows of all ranks, as wide as the row with the most experts here.
ops::Routing DispatchedMoe::JoinRouting() {
  int64_t width = 1;
  const auto parcel_of = [&](int32_t rank) -> const Parcel& {
    return rank == rank_ ? outgoing_[rank] : incoming_[rank];
  };
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

void DispatchedMoe::RunExperts(int32_t layer) {
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
  kernels_.ExpertFfn(rows, routing, {layout_, local_blobs_(layer)}, sums);
  if (dtype_ == spec::DType::kBf16) {
    rounded_sums_.EnsureBytes(row_count * row_bytes(), "dispatched sums");
    RoundTo(sums_.as<float>(), rounded_sums_.as<BFloat16>(), row_count * model_dim());
  }
}

absl::Status DispatchedMoe::SwapPartials() {
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
  return exchange_.Swap(send_, receive_);
}

// This rank's own sums are rounded like the others: a row's result is the same on any home rank.
void DispatchedMoe::AddPartials(ops::Matrix residual) const {
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const bool is_own = rank == rank_;
    const std::byte* partial = is_own ? RowsOf(local_sums(), row_begins_[rank], 0).data()
                                      : RowsOf(partials_, partial_begins_[rank], 0).data();
    for (const int32_t row : outgoing_[rank].rows) {
      float* const sum = residual.row<float>(row);
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
