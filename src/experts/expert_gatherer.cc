#include "experts/expert_gatherer.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/check.h"
#include "experts/source_wait.h"

namespace zp::experts {
namespace {

using Clock = GatherLoop::Clock;

constexpr int kPoison = 0xff;  // NaN in every number format that weights have

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

std::vector<std::string> NamesOf(const std::vector<ExpertSource>& sources) {
  std::vector<std::string> names;
  names.reserve(sources.size());
  for (const ExpertSource& source : sources) {
    names.push_back(source.name);
  }
  return names;
}

}  // namespace

ExpertGatherer::ExpertGatherer(std::shared_ptr<const ExpertStore> store,
                               std::vector<ExpertSource> sources,
                               std::vector<std::vector<uint64_t>> checksums,
                               const ExpertGathererOptions& options)
    : store_(std::move(store)),
      checksums_(std::move(checksums)),
      options_(options),
      source_names_(NamesOf(sources)),
      loop_(std::move(sources),
            options.window_slot_count,
            !checksums_.empty(),
            WithSlicesFor(store_->catalog().expert_bytes, options.loop)) {
  const ExpertCatalog& catalog = store_->catalog();
  for (LayerIndex layer = 0; layer < catalog.layer_count(); ++layer) {
    missing_.push_back(store_->placement().Missing(store_->host(), layer));
  }
  const int32_t most_missing = store_->placement().max_missing_count(store_->host());
  for (int32_t index = 0; index < options.window_slot_count; ++index) {
    Slot& slot = *slots_.emplace_back(std::make_unique<Slot>());
    slot.bytes = memory::Buffer(most_missing * catalog.expert_bytes, "expert window");
    slot.blobs.resize(catalog.expert_count);
    slot.targets.reserve(most_missing);
    slot.report.bytes_by_source.resize(loop_.sources().size());
  }
  if (most_missing > 0) {
    wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    ZP_CHECK(wake_fd_ >= 0) << std::strerror(errno);
    thread_ = std::thread([this] { GatherThread(); });
  }
}

ExpertGatherer::~ExpertGatherer() {
  if (thread_.joinable()) {
    stopping_.store(true, std::memory_order_release);
    WakeGatherThread();
    thread_.join();
    close(wake_fd_);
  }
}

// --- The engine thread's side ---

GatherTicket ExpertGatherer::StartGather(LayerIndex layer) {
  ZP_CHECK(store_->catalog().layer_has_experts[layer]) << "layer " << layer << " has no experts";
  const auto free = std::ranges::find_if(slots_, [](const auto& slot) { return !slot->taken; });
  ZP_CHECK(free != slots_.end()) << "more than " << slots_.size() << " tickets alive";
  Slot& slot = **free;
  AwaitLeaving(slot, SlotState::kDropped);
  slot.taken = true;
  slot.layer = layer;
  slot.sequence = next_sequence_++;
  FillTargets(slot, layer);
  if (slot.targets.empty()) {
    slot.status = absl::OkStatus();
    slot.report.seconds = 0;
    slot.report.bytes = 0;
    slot.state.store(SlotState::kDone, std::memory_order_relaxed);
  } else {
    slot.state.store(SlotState::kGathering, std::memory_order_release);
    WakeGatherThread();
  }
  return GatherTicket(this, layer, static_cast<int32_t>(free - slots_.begin()));
}

void ExpertGatherer::FillTargets(Slot& slot, LayerIndex layer) {
  const size_t expert_bytes = store_->catalog().expert_bytes;
  for (int32_t expert = 0; expert < store_->catalog().expert_count; ++expert) {
    slot.blobs[expert] = store_->Find(layer, expert);
  }
  slot.targets.clear();
  std::byte* next = slot.bytes.data();
  for (const int32_t expert : missing_[layer]) {
    slot.targets.push_back({.expert = expert,
                            .destination = {next, expert_bytes},
                            .checksum = checksums_.empty() ? 0 : checksums_[layer][expert]});
    slot.blobs[expert] = next;
    next += expert_bytes;
  }
}

absl::StatusOr<std::span<const std::byte* const>> ExpertGatherer::Wait(const GatherTicket& ticket) {
  Slot& slot = *slots_[ticket.slot()];
  ZP_CHECK(slot.taken && slot.layer == ticket.layer()) << "layer " << ticket.layer();
  AwaitLeaving(slot, SlotState::kGathering);
  if (!slot.status.ok()) {
    return slot.status;
  }
  return std::span<const std::byte* const>(slot.blobs);
}

void ExpertGatherer::ReplaceSource(int32_t source, std::unique_ptr<fabric::ByteSource> bytes) {
  if (!thread_.joinable()) {
    return;  // nothing is ever gathered
  }
  {
    const std::lock_guard lock(replacements_mutex_);
    replacements_.push_back({source, std::move(bytes)});
  }
  WakeGatherThread();
}

void ExpertGatherer::AwaitLeaving(const Slot& slot, SlotState state) {
  if (slot.state.load(std::memory_order_acquire) != state) {
    return;
  }
  const Clock::time_point begin = Clock::now();
  slot.state.wait(state, std::memory_order_acquire);
  exposed_wait_seconds_ += Seconds(Clock::now() - begin);
}

void ExpertGatherer::Release(int32_t slot_index) {
  Slot& slot = *slots_[slot_index];
  ZP_CHECK(slot.taken) << "slot " << slot_index << " released twice";
  slot.taken = false;
  SlotState gathering = SlotState::kGathering;
  if (slot.state.compare_exchange_strong(
          gathering, SlotState::kDropped, std::memory_order_acq_rel)) {
    WakeGatherThread();
    return;
  }
  if (options_.poison_released_slots && !slot.targets.empty()) {
    std::memset(slot.bytes.data(), kPoison, slot.bytes.size_bytes());
  }
  slot.state.store(SlotState::kFree, std::memory_order_relaxed);
}

// --- The gather thread's side ---

void ExpertGatherer::GatherThread() {
  while (true) {
    const bool stopping = stopping_.load(std::memory_order_acquire);
    bool progress = TakeReplacements();
    progress |= TakeRequests();
    progress |= loop_.Turn(Clock::now());
    bool any_begun = false;
    for (int32_t slot = 0; slot < static_cast<int32_t>(slots_.size()); ++slot) {
      if (slots_[slot]->begun && loop_.IsDone(slot)) {
        Finish(slot);
        progress = true;
      }
      any_begun |= slots_[slot]->begun;
    }
    if (stopping && !any_begun) {
      return;
    }
    if (!progress) {
      Sleep();
    }
  }
}

// In the order in which they came: one that has to wait for reads to end holds up those behind it.
bool ExpertGatherer::TakeReplacements() {
  const std::lock_guard lock(replacements_mutex_);
  size_t taken = 0;
  while (taken < replacements_.size() &&
         loop_.Replace(replacements_[taken].source, replacements_[taken].bytes)) {
    ++taken;
  }
  replacements_.erase(replacements_.begin(), replacements_.begin() + static_cast<int64_t>(taken));
  return taken > 0;
}

// Begins what the engine asked for, in that order, and drops what it no longer wants.
bool ExpertGatherer::TakeRequests() {
  bool any = false;
  while (true) {
    int32_t next = -1;
    for (int32_t index = 0; index < static_cast<int32_t>(slots_.size()); ++index) {
      Slot& slot = *slots_[index];
      SlotState state = slot.state.load(std::memory_order_acquire);
      if (state == SlotState::kGathering && stopping_.load(std::memory_order_relaxed)) {
        slot.state.compare_exchange_strong(state, SlotState::kDropped);
        state = SlotState::kDropped;
      }
      if (slot.begun && state == SlotState::kDropped) {
        loop_.Drop(index);
      }
      const bool is_new =
          !slot.begun && (state == SlotState::kGathering || state == SlotState::kDropped);
      if (is_new && (next < 0 || slot.sequence < slots_[next]->sequence)) {
        next = index;
      }
    }
    if (next < 0) {
      return any;
    }
    any = true;
    Slot& slot = *slots_[next];
    slot.begun = true;
    loop_.Begin(next, slot.layer, slot.targets, Clock::now());
  }
}

void ExpertGatherer::Finish(int32_t slot_index) {
  Slot& slot = *slots_[slot_index];
  const Clock::time_point end = Clock::now();
  slot.begun = false;
  slot.status = loop_.TakeDone(slot_index);
  const Clock::time_point begin = loop_.first_read(slot_index);
  slot.report.seconds = Seconds(end - begin);
  slot.report.bytes = 0;
  const std::span<const int64_t> bytes = loop_.bytes_by_source(slot_index);
  std::ranges::copy(bytes, slot.report.bytes_by_source.begin());
  for (const int64_t source_bytes : bytes) {
    slot.report.bytes += source_bytes;
  }
  if (options_.trace != nullptr) {
    options_.trace->Add({.track = "gather",
                         .name = "gather",
                         .rank = options_.rank,
                         .layer = slot.layer,
                         .bytes = slot.report.bytes,
                         .begin = begin,
                         .end = end});
  }
  SlotState gathering = SlotState::kGathering;
  const bool wanted =
      slot.state.compare_exchange_strong(gathering, SlotState::kDone, std::memory_order_acq_rel);
  if (!wanted) {
    slot.state.store(SlotState::kFree, std::memory_order_release);
  }
  slot.state.notify_all();
}

void ExpertGatherer::Sleep() {
  AwaitSources(loop_.sources(), wake_fd_, loop_.NextCheck(Clock::now()));
  uint64_t ignored = 0;
  [[maybe_unused]] const ssize_t bytes = read(wake_fd_, &ignored, sizeof(ignored));
}

void ExpertGatherer::WakeGatherThread() const {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t bytes = write(wake_fd_, &one, sizeof(one));
}

}  // namespace zp::experts
