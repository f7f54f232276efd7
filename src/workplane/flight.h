// The works that a gateway has brought to a remote host and that are not answered: those that wait
// to be sent, and those that the worker has.
//
// Thread safety: any thread; each method takes the lock for itself and calls nobody under it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "protocol/work.h"
#include "workplane/work_plane.pb.h"

namespace zp::workplane {

// One of them.
struct Flight {
  std::optional<std::chrono::steady_clock::time_point> deadline;
  protocol::WorkSink::Done done;
  std::vector<uint32_t> shape;           // of the answer
  size_t bytes = 0;                      // of `submit`
  std::unique_ptr<wire::Submit> submit;  // until it is sent
  std::atomic<bool> is_cancelled = false;
  // Made before the flight is added, so it may have run by then.
  std::optional<std::stop_callback<std::function<void()>>> on_cancel;
};

class Flights {
 public:
  struct Landed {
    std::shared_ptr<Flight> flight;
    absl::StatusOr<protocol::WorkResult> result;
  };

  Flights(size_t max_works, size_t max_unsent_bytes)
      : max_works_(max_works), max_unsent_bytes_(max_unsent_bytes) {}

  // None is closed until Open; ranks as many as given there.
  void Open(int32_t rank_count);
  // No more are added; what there is stays.
  void Close(const absl::Status& why);
  // Why not, where it is closed.
  absl::Status status() const;

  // Errors: ResourceExhausted with the retry payload, or what Close was told.
  absl::Status Add(std::shared_ptr<Flight> flight);
  // True: a cancel is to be sent, or the work not to be.
  bool Cancel(uint64_t id);

  // Moves what can be sent into `message`. What is not to be sent any more lands.
  void FillMessage(wire::FromGateway& message,
                   std::chrono::steady_clock::time_point now,
                   std::vector<Landed>& landed);
  // The one that is answered; null if there is none of that id.
  std::shared_ptr<Flight> Land(uint64_t id);
  // All there are.
  std::vector<std::shared_ptr<Flight>> LandAll();

 private:
  const size_t max_works_;
  const size_t max_unsent_bytes_;
  mutable std::mutex mutex_;  // of all below
  absl::Status status_ = absl::UnavailableError("the worker was not reached yet");
  int32_t rank_count_ = 0;
  absl::flat_hash_map<uint64_t, std::shared_ptr<Flight>> flights_;
  std::deque<std::shared_ptr<Flight>> unsent_;
  size_t unsent_bytes_ = 0;
  std::vector<uint64_t> cancels_;
};

}  // namespace zp::workplane
