#include "workplane/flight.h"

#include <utility>

#include "absl/strings/cord.h"
#include "fmt/format.h"
#include "workplane/wire.h"

namespace zp::workplane {
namespace {

absl::Status Full(const char* what, size_t limit) {
  absl::Status status = absl::ResourceExhaustedError(
      fmt::format("as much as may be on its way to this host is: {} {}", limit, what));
  status.SetPayload(protocol::kRetrySecondsPayload, absl::Cord("1"));
  return status;
}

}  // namespace

void Flights::Open(int32_t rank_count) {
  const std::lock_guard lock(mutex_);
  rank_count_ = rank_count;
  status_ = absl::OkStatus();
}

void Flights::Close(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  status_ = why;
}

absl::Status Flights::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

absl::Status Flights::Add(std::shared_ptr<Flight> flight) {
  const std::lock_guard lock(mutex_);
  ZP_RETURN_IF_ERROR(status_);
  if (flight->submit->rank() >= static_cast<uint32_t>(rank_count_)) {
    return absl::UnavailableError(
        fmt::format("rank {} is not there: the host has {}", flight->submit->rank(), rank_count_));
  }
  if (flights_.size() >= max_works_) {
    return Full("works", max_works_);
  }
  if (unsent_bytes_ > 0 && unsent_bytes_ + flight->bytes > max_unsent_bytes_) {
    return Full("bytes", max_unsent_bytes_);
  }
  unsent_bytes_ += flight->bytes;
  flights_.emplace(flight->submit->id(), flight);
  unsent_.push_back(std::move(flight));
  return absl::OkStatus();
}

bool Flights::Cancel(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = flights_.find(id);
  if (found == flights_.end()) {
    return false;
  }
  if (found->second->submit == nullptr) {
    cancels_.push_back(id);
  }
  return true;
}

void Flights::FillMessage(wire::FromGateway& message,
                          std::chrono::steady_clock::time_point now,
                          std::vector<Landed>& landed) {
  const std::lock_guard lock(mutex_);
  message.mutable_cancels()->Add(cancels_.begin(), cancels_.end());
  cancels_.clear();
  size_t bytes = 0;
  while (!unsent_.empty() && bytes < kFullMessageBytes) {
    std::shared_ptr<Flight> flight = std::move(unsent_.front());
    unsent_.pop_front();
    unsent_bytes_ -= flight->bytes;
    absl::Status not_sent;
    if (flight->is_cancelled) {
      not_sent = absl::CancelledError("cancelled before it was sent");
    } else if (flight->deadline) {
      const uint64_t remaining_ms = RemainingMs(*flight->deadline, now);
      flight->submit->set_remaining_ms(remaining_ms);
      if (remaining_ms == 0) {
        not_sent = absl::DeadlineExceededError("the deadline passed before it was sent");
      }
    }
    if (!not_sent.ok()) {
      flights_.erase(flight->submit->id());
      landed.push_back({.flight = std::move(flight), .result = std::move(not_sent)});
      continue;
    }
    bytes += flight->bytes;
    message.mutable_submits()->AddAllocated(flight->submit.release());
  }
}

std::shared_ptr<Flight> Flights::Land(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = flights_.find(id);
  if (found == flights_.end() || found->second->submit != nullptr) {
    return nullptr;  // answered before it was sent is answered by mistake
  }
  std::shared_ptr<Flight> flight = std::move(found->second);
  flights_.erase(found);
  return flight;
}

std::vector<std::shared_ptr<Flight>> Flights::LandAll() {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Flight>> all;
  all.reserve(flights_.size());
  for (auto& [id, flight] : flights_) {
    all.push_back(std::move(flight));
  }
  flights_.clear();
  unsent_.clear();
  unsent_bytes_ = 0;
  cancels_.clear();
  return all;
}

}  // namespace zp::workplane
