// The seam through which a layer asks for its experts' weights. The compute side sees a window:
// "the bank of layer l is here".
//
// The window (expert_gatherer.h) implements it. This room knows nothing of what is computed: an
// expert is a blob of bytes.
//
// Thread safety: StartGather, Wait and dropping a ticket from the engine thread only.
// Ownership: the weights belong to the provider; a GatherTicket pins a bank until it is destroyed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "experts/expert_catalog.h"

namespace zp::experts {

// How a bank came.
struct GatherReport {
  double seconds = 0;  // from the first read to the last byte; 0 if nothing was missing
  int64_t bytes = 0;
  std::vector<int64_t> bytes_by_source = {};  // as source_names()
};

class ExpertProvider;

// Pins the bank of one layer. Moves, is never copied; the bank may be overwritten once the ticket
// is gone.
class GatherTicket {
 public:
  GatherTicket() = default;
  GatherTicket(ExpertProvider* provider, LayerIndex layer, int32_t slot)
      : provider_(provider), layer_(layer), slot_(slot) {}
  GatherTicket(GatherTicket&& other) noexcept { *this = std::move(other); }
  GatherTicket& operator=(GatherTicket&& other) noexcept {
    GatherTicket taken(std::exchange(other.provider_, nullptr), other.layer_, other.slot_);
    std::swap(provider_, taken.provider_);
    std::swap(layer_, taken.layer_);
    std::swap(slot_, taken.slot_);
    return *this;
  }
  ~GatherTicket();

  LayerIndex layer() const { return layer_; }
  int32_t slot() const { return slot_; }

 private:
  ExpertProvider* provider_ = nullptr;
  LayerIndex layer_ = -1;
  int32_t slot_ = -1;
};

class ExpertProvider {
 public:
  virtual ~ExpertProvider() = default;

  // How many tickets may be alive at once: the layers in use and on their way.
  virtual int32_t window_slot_count() const = 0;

  // Begins to bring the experts of `layer`; returns at once.
  // REQUIRES: fewer than window_slot_count() tickets alive; `layer` has experts.
  virtual GatherTicket StartGather(LayerIndex layer) = 0;

  // Returns when the bank is there: one pointer per expert, valid while the ticket lives. The time
  // spent here is exposed wait. An error says which expert could not be had, and why; the next
  // gather begins afresh.
  virtual absl::StatusOr<std::span<const std::byte* const>> Wait(const GatherTicket& ticket) = 0;

  // Of a bank that Wait has returned; valid while the ticket lives.
  virtual const GatherReport& report(const GatherTicket& ticket) const = 0;

  // Where banks come from, beside this host's memory.
  virtual std::vector<std::string> source_names() const = 0;

  // Seconds the engine stood still in Wait, since the start.
  virtual double exposed_wait_seconds() const = 0;

 private:
  friend class GatherTicket;
  virtual void Release(int32_t slot) = 0;
};

inline GatherTicket::~GatherTicket() {
  if (provider_ != nullptr) {
    provider_->Release(slot_);
  }
}

}  // namespace zp::experts
