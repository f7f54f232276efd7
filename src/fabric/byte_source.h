// Bytes that lie elsewhere, in a file or in another process, and can be read from there in slices.
//
// The reader pulls; whoever holds the bytes does nothing of its own. No model word is known here:
// an object is a run of bytes with a number, a slice is a part of it.
//
// Thread safety: one thread (the gather thread of a rank) owns a source and calls all of it.
// Ownership: the destinations are the caller's; they are written only between a read's Start and
// its completion. Errors: a read that fails completes with an errno value; a source never blocks
// and never retries, its caller decides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace zp::fabric {

struct SliceRead {
  uint32_t object = 0;
  uint64_t offset = 0;                    // into the object; a multiple of 4096
  std::span<std::byte> destination = {};  // aligned to 4096, a multiple of 4096 long
  uint64_t token = 0;                     // comes back with the completion
};

struct SliceDone {
  uint64_t token = 0;
  int error = 0;  // 0: all bytes are there; else an errno value
};

class ByteSource {
 public:
  virtual ~ByteSource() = default;

  // For logs and metrics: "file experts-00003.zpx", "peer 10.0.0.2:7001".
  virtual std::string_view name() const = 0;

  // How many reads it can have in flight.
  virtual int32_t max_reads_in_flight() const = 0;

  // Begins a read; returns at once and allocates nothing. Errors come as completions.
  // REQUIRES: fewer than max_reads_in_flight() reads without a completion.
  virtual void Start(const SliceRead& read) = 0;

  // Appends the reads that have ended since the last call to `done`. Never blocks.
  virtual void Poll(std::vector<SliceDone>& done) = 0;

  // To sleep until Poll has something: Arm, then wait for event_fd() to become readable. Arm
  // returns false if there is something already.
  virtual bool Arm() = 0;
  virtual int event_fd() const = 0;

  // Ends all reads in flight as fast as the source can, with ECANCELED: they still come through
  // Poll, and after that nothing writes to their destinations. The next Start begins afresh (a
  // connection is made anew).
  virtual void Abandon() = 0;
};

}  // namespace zp::fabric
