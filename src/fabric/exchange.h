// All-to-all among ranks: every rank sends one message to each other rank and receives one from
// each.
//
// All ranks make the same calls in the same order; a call is a step. Both sides of a message know
// its length before (lengths that are not known travel in a step of their own), so that bytes go
// from where they lie to where they belong without a copy on the way.
//
// Thread safety: one thread calls all of it.
// Ownership: the memory is the caller's, lent for the call. A rank that goes away ends the exchange
// for all: the first error is given again by every later call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace zp::fabric {

// The parts of a message, one after the other; any may be empty, and there may be none.
using SendParts = std::vector<std::span<const std::byte>>;
using ReceiveParts = std::vector<std::span<std::byte>>;

class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual int32_t rank() const = 0;
  virtual int32_t rank_count() const = 0;

  // Sends outgoing[r] to rank r and fills incoming[r] with what rank r sends in the same step;
  // [rank_count] each, this rank's own are not looked at. Returns when all has been received and
  // `outgoing` may be overwritten. Errors: Unavailable if a rank is lost, DeadlineExceeded if
  // nothing moves within the exchange's time-out, Internal if a message is of another step or
  // length. Each names the rank.
  virtual absl::Status Swap(std::span<const SendParts> outgoing,
                            std::span<const ReceiveParts> incoming) = 0;
};

}  // namespace zp::fabric
