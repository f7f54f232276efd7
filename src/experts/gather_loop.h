// The work of a gather thread, turn by turn: cuts the blobs of a layer into slices, spreads them
// over the sources that have them, and sees to it that every blob arrives whole and right.
//
// A source takes the next slice when it has room, so the faster one takes more. A slow one takes a
// slice only if it will have delivered it before the faster ones are through with everything. A
// source that fails or gives no sign of life for a while is abandoned, and its slices go to the
// others; it is tried again later, with a probe: a slice that no bank waits for. So is one that was
// passed over for a while as too slow: it may be faster now. A blob whose checksum is wrong is read
// again, whole, from one source after the other.
//
// Separate from the thread (expert_gatherer.h) so that time and sources can be played in tests.
//
// Thread safety: none; belongs to the gather thread. Ownership: owns the sources; the destinations
// are lent by Begin until the slot is done.
// Errors: a slot whose blobs cannot be had is done with a status that names layer, expert and what
// each source said.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "experts/expert_source.h"
#include "experts/source_pace.h"
#include "memory/buffer.h"

namespace zp::experts {

struct GatherLoopOptions {
  size_t slice_bytes = size_t{2} << 20;
  std::chrono::milliseconds stall_timeout{2000};
  std::chrono::milliseconds retry_delay{1000};  // after a source failed; doubles with each failure
  std::chrono::milliseconds give_up_timeout{30'000};
  // After so long without a read, while others deliver, nobody knows how fast a source is.
  std::chrono::milliseconds pace_lifetime{20'000};
};

// `options` with slices so large that a blob of `expert_bytes` is not cut into more than
// kMostSlices, in whole pages.
inline constexpr int32_t kMostSlices = 64;
GatherLoopOptions WithSlicesFor(size_t expert_bytes, GatherLoopOptions options);

// One blob that is to come, and where to.
struct BlobTarget {
  int32_t expert = 0;
  std::span<std::byte> destination = {};
  uint64_t checksum = 0;
};

class GatherLoop {
 public:
  using Clock = SourcePace::Clock;

  GatherLoop(std::vector<ExpertSource> sources,
             int32_t slot_count,
             bool verify_checksums,
             const GatherLoopOptions& options);

  // REQUIRES: the slot is idle.
  void Begin(int32_t slot,
             LayerIndex layer,
             std::span<const BlobTarget> targets,
             Clock::time_point now);
  // Nobody wants the slot's bytes any more: it is done once nothing is in flight to it.
  void Drop(int32_t slot);

  // Takes what has arrived and starts what can be started; false if there was nothing to do.
  bool Turn(Clock::time_point now);

  // A slot that was begun and is done becomes idle by TakeDone.
  bool IsDone(int32_t slot) const;
  absl::Status TakeDone(int32_t slot);
  // Of the slot's last gather: when its first slice was asked for, and what came from where.
  Clock::time_point first_read(int32_t slot) const { return slots_[slot].first_read; }
  std::span<const int64_t> bytes_by_source(int32_t slot) const { return slots_[slot].source_bytes; }

  // Another ByteSource, or none, in the place of a source; what it was reading is read from
  // elsewhere. False: reads are in flight still, they were abandoned; ask again after a Turn.
  bool Replace(int32_t source, std::unique_ptr<fabric::ByteSource>& bytes);

  // When Turn must run though no source wakes the thread: a source may have stopped.
  Clock::time_point NextCheck(Clock::time_point now) const;

  const std::vector<ExpertSource>& sources() const { return sources_; }

 private:
  // A blob on its way. Bit i of `open_slices`: slice i is neither there nor in flight.
  struct Blob {
    BlobTarget target;
    uint64_t open_slices = 0;
    int32_t arrived_slices = 0;
    int32_t only_source = -1;     // after a wrong checksum: read from this one alone
    uint64_t failed_sources = 0;  // bit s: source s cannot deliver it
    std::string complaint = {};   // what the last failed source said
  };
  struct Slot {
    bool active = false;
    LayerIndex layer = -1;
    uint64_t sequence = 0;
    std::vector<Blob> blobs = {};
    size_t first_open_blob = 0;
    int64_t open_bytes = 0;
    int32_t blobs_left = 0;
    int32_t reads_in_flight = 0;
    Clock::time_point begin = {};
    Clock::time_point first_read = {};  // `begin` until then: older slots go first
    bool has_read = false;
    absl::Status status = {};
    std::vector<int64_t> source_bytes = {};  // [source]
  };
  struct Read {
    int32_t slot = 0;  // kProbe: for none
    int32_t blob = 0;
    int32_t slice = 0;
    int64_t bytes = 0;
  };
  static constexpr int32_t kProbe = -1;
  struct SourceState {
    SourcePace pace;
    std::vector<Read> reads;          // [max_reads_in_flight]
    std::vector<int32_t> free_reads;  // places in `reads`
    Clock::time_point down_until = {};
    int32_t failures = 0;      // since it last delivered
    bool is_on_trial = false;  // has to deliver a probe before it is trusted with a bank
    bool is_slow = false;      // said so in the log
    size_t reads_in_flight() const { return reads.size() - free_reads.size(); }
  };
  struct Choice {
    Slot* slot = nullptr;
    int32_t blob = -1;
    int32_t slice = -1;
  };

  void ResetState(int32_t source);
  void ForgetOldPace(int32_t source, Clock::time_point now);
  bool StartReads(int32_t source, Clock::time_point now);
  bool StartProbe(int32_t source, Clock::time_point now);
  Choice NextSlice(int32_t source, Clock::time_point now);
  int32_t source_count() const { return static_cast<int32_t>(sources_.size()); }
  bool Has(int32_t source, const Slot& slot, const Blob& blob) const;
  bool AnyCanDeliver(const Slot& slot, const Blob& blob) const;
  bool CanDeliver(int32_t source, const Slot& slot, const Blob& blob) const;
  bool WorthTaking(int32_t source, const Slot& slot, const Blob& blob, Clock::time_point now) const;
  void StartRead(int32_t source, const Choice& choice, Clock::time_point now);
  void Issue(int32_t source,
             const Slot& slot,
             const Read& read,
             std::span<std::byte> destination,
             Clock::time_point now);
  bool TakeCompletions(int32_t source, Clock::time_point now);
  void OnArrived(int32_t source, const Read& read, Clock::time_point now);
  void OnFailed(int32_t source, const Read& read, int error, Clock::time_point now);
  void OnProbeDone(int32_t source, int error, Clock::time_point now);
  void CheckBlob(int32_t source, Slot& slot, Blob& blob, Clock::time_point now);
  void ReadAgain(Slot& slot, Blob& blob, Clock::time_point now);
  void Reopen(Slot& slot, Blob& blob, uint64_t slices);
  void AbandonIfStalled(int32_t source, Clock::time_point now);
  bool OthersCanDeliver(int32_t source) const;
  void ForgetOnlySource(int32_t source);
  void TakeDown(int32_t source, Clock::time_point now);
  void GiveUpIfHopeless(Slot& slot, Clock::time_point now);
  static void Fail(Slot& slot, absl::Status status);

  int32_t SliceCount(const Blob& blob) const;
  int64_t SliceBytes(const Blob& blob, int32_t slice) const;
  std::string Describe(int32_t source, LayerIndex layer, int32_t expert) const;
  std::string DescribeHolders(const Slot& slot, const Blob& blob) const;

  std::vector<ExpertSource> sources_;
  std::vector<SourceState> states_;  // [source]
  std::vector<Slot> slots_;
  std::vector<int32_t> slot_order_;  // the active ones, oldest first
  memory::Buffer probe_bytes_;       // where probes go; nobody reads it
  const bool verify_checksums_;
  const GatherLoopOptions options_;
  uint64_t next_sequence_ = 0;
  std::vector<fabric::SliceDone> done_;
};

}  // namespace zp::experts
