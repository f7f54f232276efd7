// The window: brings the experts that this host does not keep to a rank, one layer or more ahead of
// the compute, and hands out banks in which kept and gathered experts lie side by side.
//
// Each slot of the window holds what one layer misses. Two events separate the threads. *Arrived*:
// the gather thread has every byte of a slot and has checked it; Wait returns. *Released*: the
// ticket is gone, the last operation that reads the slot is over; from then on the gather thread
// may write to it. A slot is never reused while a read to it is in flight.
//
// On the compute side nothing allocates and nothing blocks but Wait (and StartGather, if a ticket
// was dropped before its bank had come). Where everything is kept there is no thread and no window.
//
// Thread safety: as ExpertProvider; one internal thread drives the sources.
// Ownership: owns window and sources; shares the store with the other ranks of the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/trace.h"
#include "experts/expert_provider.h"
#include "experts/expert_source.h"
#include "experts/expert_store.h"
#include "experts/gather_loop.h"
#include "memory/buffer.h"

namespace zp::experts {

struct ExpertGathererOptions {
  int32_t window_slot_count = 2;
  int32_t rank = 0;  // for the trace
  GatherLoopOptions loop = {};
  // Overwrites a slot when it is released, so that a read after that yields NaN. For tests.
  bool poison_released_slots = false;
  base::Trace* trace = nullptr;
};

class ExpertGatherer final : public ExpertProvider {
 public:
  // `checksums` [layer][expert] of the blobs, or empty: then nothing is verified.
  // REQUIRES: every expert that the store's host does not keep is in some source.
  ExpertGatherer(std::shared_ptr<const ExpertStore> store,
                 std::vector<ExpertSource> sources,
                 std::vector<std::vector<uint64_t>> checksums,
                 const ExpertGathererOptions& options);
  ~ExpertGatherer() override;

  int32_t window_slot_count() const override { return static_cast<int32_t>(slots_.size()); }
  GatherTicket StartGather(LayerIndex layer) override;
  absl::StatusOr<std::span<const std::byte* const>> Wait(const GatherTicket& ticket) override;
  const GatherReport& report(const GatherTicket& ticket) const override {
    return slots_[ticket.slot()]->report;
  }
  std::vector<std::string> source_names() const override { return source_names_; }

  // Another connection in the place of a source, or none (null); from any thread.
  void ReplaceSource(int32_t source, std::unique_ptr<fabric::ByteSource> bytes);

  double exposed_wait_seconds() const override { return exposed_wait_seconds_; }

 private:
  enum class SlotState : uint32_t {
    kFree,       // engine: may begin a gather
    kGathering,  // gather thread: bytes are coming
    kDropped,    // the ticket went before the bytes were there; gather thread: make it free
    kDone,       // engine: arrived, or failed
  };

  struct Slot {
    std::atomic<SlotState> state{SlotState::kFree};
    bool taken = false;  // engine thread: a ticket is alive
    // Written by the engine thread before kGathering.
    LayerIndex layer = -1;
    uint64_t sequence = 0;
    std::vector<const std::byte*> blobs;  // [expert]
    std::vector<BlobTarget> targets;      // what is to come
    // Written by the gather thread before kDone.
    absl::Status status;
    GatherReport report;
    // The gather thread's own.
    bool begun = false;
    memory::Buffer bytes;
  };

  void Release(int32_t slot) override;
  void FillTargets(Slot& slot, LayerIndex layer);
  void AwaitLeaving(const Slot& slot, SlotState state);

  void GatherThread();
  bool TakeRequests();
  bool TakeReplacements();
  void Finish(int32_t slot_index);
  void Sleep();
  void WakeGatherThread() const;

  const std::shared_ptr<const ExpertStore> store_;
  const std::vector<std::vector<uint64_t>> checksums_;
  const ExpertGathererOptions options_;
  std::vector<std::vector<int32_t>> missing_;  // [layer], in the order in which they are fetched
  std::vector<std::unique_ptr<Slot>> slots_;
  uint64_t next_sequence_ = 0;
  double exposed_wait_seconds_ = 0;

  const std::vector<std::string> source_names_;

  struct Replacement {
    int32_t source = 0;
    std::unique_ptr<fabric::ByteSource> bytes = {};
  };
  std::mutex replacements_mutex_;
  std::vector<Replacement> replacements_;  // guarded; not taken yet

  GatherLoop loop_;  // gather thread
  int wake_fd_ = -1;
  std::atomic<bool> stopping_{false};
  std::thread thread_;  // last: everything it uses is there before it starts
};

}  // namespace zp::experts
