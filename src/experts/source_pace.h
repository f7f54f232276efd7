// How fast a source delivers, from what it delivered lately, and whether it has stopped.
//
// Thread safety: none; belongs to the gather thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>

namespace zp::experts {

class SourcePace {
 public:
  using Clock = std::chrono::steady_clock;

  void OnStart(int64_t bytes, Clock::time_point now) {
    if (in_flight_bytes_ == 0) {
      busy_since_ = now;
      last_sign_ = now;
    }
    in_flight_bytes_ += bytes;
  }

  // A read has ended; `bytes_moved` is 0 if it failed, and the time it took says nothing then.
  void OnDone(int64_t bytes, int64_t bytes_moved, Clock::time_point now) {
    in_flight_bytes_ -= bytes;
    if (bytes_moved > 0) {
      moved_bytes_ += static_cast<double>(bytes_moved);
      busy_seconds_ += std::chrono::duration<double>(now - busy_since_).count();
    }
    busy_since_ = now;
    last_sign_ = now;
    if (busy_seconds_ > kMemorySeconds) {  // what is long past counts less and less
      moved_bytes_ /= 2;
      busy_seconds_ /= 2;
    }
  }

  // What was measured holds no longer.
  void Forget() {
    moved_bytes_ = 0;
    busy_seconds_ = 0;
  }
  bool is_known() const { return busy_seconds_ > 0; }

  int64_t in_flight_bytes() const { return in_flight_bytes_; }

  // Infinite until something was measured: an unknown source is tried.
  double bytes_per_s() const {
    return busy_seconds_ > 0 && moved_bytes_ > 0 ? moved_bytes_ / busy_seconds_
                                                 : std::numeric_limits<double>::infinity();
  }

  // When the source last gave a sign of life while it had something to do.
  Clock::time_point last_sign() const { return last_sign_; }

 private:
  static constexpr double kMemorySeconds = 2;

  int64_t in_flight_bytes_ = 0;
  double moved_bytes_ = 0;
  double busy_seconds_ = 0;
  Clock::time_point busy_since_;
  Clock::time_point last_sign_;
};

}  // namespace zp::experts
