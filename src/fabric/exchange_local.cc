#include "fabric/exchange_local.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>

#include "fmt/format.h"

namespace zp::fabric {
namespace {

constexpr int32_t kNoRank = -1;

size_t BytesOf(const auto& parts) {
  size_t bytes = 0;
  for (const auto& part : parts) {
    bytes += part.size();
  }
  return bytes;
}

// REQUIRES: equal lengths.
void Copy(SendParts from, const ReceiveParts& to) {
  size_t source = 0;
  for (std::span<std::byte> part : to) {
    while (!part.empty()) {
      std::span<const std::byte>& rest = from[source];
      const size_t bytes = std::min(rest.size(), part.size());
      std::copy_n(rest.begin(), bytes, part.begin());
      rest = rest.subspan(bytes);
      part = part.subspan(bytes);
      source += rest.empty() ? 1 : 0;
    }
  }
}

// What the ranks share: where each one's messages of its step lie.
struct Table {
  struct Seat {
    bool is_lost = false;
    int64_t step = 0;  // messages of the steps before are no longer there
    std::span<const SendParts> outgoing = {};
    std::vector<int64_t> read_steps = {};  // [rank]: the last step whose message it has copied
  };

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Seat> seats;
};

class LocalExchange final : public Exchange {
 public:
  LocalExchange(std::shared_ptr<Table> table, int32_t rank, std::chrono::milliseconds time_out)
      : table_(std::move(table)), rank_(rank), time_out_(time_out) {}
  ~LocalExchange() override { Leave(); }

  int32_t rank() const override { return rank_; }
  int32_t rank_count() const override { return static_cast<int32_t>(table_->seats.size()); }
  absl::Status Swap(std::span<const SendParts> outgoing,
                    std::span<const ReceiveParts> incoming) override;

 private:
  absl::Status Receive(int32_t source, const ReceiveParts& parts);
  absl::Status AwaitReaders();
  template <typename Condition, typename LostRank>
  absl::Status Await(std::unique_lock<std::mutex>& lock, Condition is_done, LostRank lost_rank);
  void Leave();

  const std::shared_ptr<Table> table_;
  const int32_t rank_;
  const std::chrono::milliseconds time_out_;
  int64_t step_ = 0;
  absl::Status failure_;
};

absl::Status LocalExchange::Swap(std::span<const SendParts> outgoing,
                                 std::span<const ReceiveParts> incoming) {
  ZP_RETURN_IF_ERROR(failure_);
  ++step_;
  {
    const std::lock_guard lock(table_->mutex);
    Table::Seat& seat = table_->seats[rank_];
    seat.step = step_;
    seat.outgoing = outgoing;
    seat.read_steps[rank_] = step_;
  }
  table_->changed.notify_all();
  for (int32_t source = 0; source < rank_count() && failure_.ok(); ++source) {
    if (source != rank_) {
      failure_ = Receive(source, incoming[source]);
    }
  }
  if (failure_.ok()) {
    failure_ = AwaitReaders();
  }
  if (!failure_.ok()) {
    Leave();
  }
  return failure_;
}

// The lock is held during the copy: nobody takes the sender's memory away from under it.
absl::Status LocalExchange::Receive(int32_t source, const ReceiveParts& parts) {
  std::unique_lock lock(table_->mutex);
  Table::Seat& seat = table_->seats[source];
  ZP_RETURN_IF_ERROR(Await(
      lock, [&] { return seat.step >= step_; }, [&] { return seat.is_lost ? source : kNoRank; }));
  const SendParts& message = seat.outgoing[rank_];
  if (BytesOf(message) != BytesOf(parts)) {
    return absl::InternalError(fmt::format("rank {} sent {} bytes in step {}; expected {}",
                                           source,
                                           BytesOf(message),
                                           step_,
                                           BytesOf(parts)));
  }
  Copy(message, parts);
  seat.read_steps[rank_] = step_;
  lock.unlock();
  table_->changed.notify_all();
  return absl::OkStatus();
}

absl::Status LocalExchange::AwaitReaders() {
  std::unique_lock lock(table_->mutex);
  const std::vector<int64_t>& read_steps = table_->seats[rank_].read_steps;
  return Await(
      lock,
      [&] { return std::ranges::min(read_steps) == step_; },
      [&] {
        for (int32_t reader = 0; reader < rank_count(); ++reader) {
          if (read_steps[reader] < step_ && table_->seats[reader].is_lost) {
            return reader;
          }
        }
        return kNoRank;
      });
}

// Until the step has come so far, or a rank on which that depends is lost.
template <typename Condition, typename LostRank>
absl::Status LocalExchange::Await(std::unique_lock<std::mutex>& lock,
                                  Condition is_done,
                                  LostRank lost_rank) {
  table_->changed.wait_for(lock, time_out_, [&] { return is_done() || lost_rank() != kNoRank; });
  if (is_done()) {
    return absl::OkStatus();
  }
  if (const int32_t rank = lost_rank(); rank != kNoRank) {
    return absl::UnavailableError(fmt::format("rank {} is lost (step {})", rank, step_));
  }
  return absl::DeadlineExceededError(
      fmt::format("nothing moved for {} ms (step {})", time_out_.count(), step_));
}

void LocalExchange::Leave() {
  {
    const std::lock_guard lock(table_->mutex);
    table_->seats[rank_].is_lost = true;
    table_->seats[rank_].step = 0;  // its messages are gone
  }
  table_->changed.notify_all();
}

}  // namespace

std::vector<std::unique_ptr<Exchange>> MakeLocalExchanges(int32_t rank_count,
                                                          std::chrono::milliseconds time_out) {
  const auto table = std::make_shared<Table>();
  table->seats.resize(rank_count, {.read_steps = std::vector<int64_t>(rank_count)});
  std::vector<std::unique_ptr<Exchange>> exchanges;
  exchanges.reserve(rank_count);
  for (int32_t rank = 0; rank < rank_count; ++rank) {
    exchanges.push_back(std::make_unique<LocalExchange>(table, rank, time_out));
  }
  return exchanges;
}

}  // namespace zp::fabric
