#include "experts/gather_loop.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/checksum.h"
#include "base/logging.h"
#include "fmt/format.h"

namespace zp::experts {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kMostSources = 64;
constexpr int32_t kMaxDoublings = 5;  // of the delay after which a lost source is tried again

uint64_t Bit(int32_t index) { return uint64_t{1} << index; }

uint64_t FirstBits(int32_t count) { return count == kMostSlices ? ~uint64_t{0} : Bit(count) - 1; }

}  // namespace

GatherLoopOptions WithSlicesFor(size_t expert_bytes, GatherLoopOptions options) {
  const size_t least = (expert_bytes + kMostSlices - 1) / kMostSlices;
  options.slice_bytes =
      (std::max(options.slice_bytes, least) + kPageBytes - 1) / kPageBytes * kPageBytes;
  return options;
}

GatherLoop::GatherLoop(std::vector<ExpertSource> sources,
                       int32_t slot_count,
                       bool verify_checksums,
                       const GatherLoopOptions& options)
    : sources_(std::move(sources)),
      states_(sources_.size()),
      slots_(slot_count),
      probe_bytes_(options.slice_bytes, "probes"),
      verify_checksums_(verify_checksums),
      options_(options) {
  ZP_CHECK(sources_.size() <= kMostSources) << sources_.size();
  for (size_t source = 0; source < sources_.size(); ++source) {
    ResetState(static_cast<int32_t>(source));
  }
  slot_order_.reserve(slot_count);
  for (Slot& slot : slots_) {
    slot.source_bytes.resize(sources_.size());
  }
}

void GatherLoop::ResetState(int32_t source) {
  SourceState& state = states_[source];
  state = {};
  if (sources_[source].bytes == nullptr) {
    return;
  }
  const int32_t reads = sources_[source].bytes->max_reads_in_flight();
  state.reads.resize(reads);
  for (int32_t place = 0; place < reads; ++place) {
    state.free_reads.push_back(place);
  }
  done_.reserve(std::max<size_t>(done_.capacity(), reads));
}

bool GatherLoop::Replace(int32_t source, std::unique_ptr<fabric::ByteSource>& bytes) {
  if (states_[source].reads_in_flight() > 0) {
    states_[source].down_until = Clock::time_point::max();  // until it is replaced
    sources_[source].bytes->Abandon();
    return false;
  }
  sources_[source].bytes = std::move(bytes);
  ResetState(source);
  ForgetOnlySource(source);
  return true;
}

void GatherLoop::Begin(int32_t slot_index,
                       LayerIndex layer,
                       std::span<const BlobTarget> targets,
                       Clock::time_point now) {
  Slot& slot = slots_[slot_index];
  ZP_CHECK(!slot.active) << "slot " << slot_index;
  slot.active = true;
  slot.layer = layer;
  slot.sequence = next_sequence_++;
  slot.begin = now;
  slot.first_read = now;
  slot.has_read = false;
  slot.status = absl::OkStatus();
  slot.first_open_blob = 0;
  slot.open_bytes = 0;
  slot.blobs_left = static_cast<int32_t>(targets.size());
  slot.blobs.resize(targets.size());
  std::ranges::fill(slot.source_bytes, 0);
  for (size_t i = 0; i < targets.size(); ++i) {
    Blob& blob = slot.blobs[i];
    blob = {.target = targets[i]};
    ZP_CHECK(SliceCount(blob) <= kMostSlices) << SliceCount(blob);
    Reopen(slot, blob, FirstBits(SliceCount(blob)));
  }
  slot_order_.push_back(slot_index);
}

void GatherLoop::Drop(int32_t slot) {
  Fail(slots_[slot], absl::CancelledError("nobody waits for it any more"));
}

bool GatherLoop::IsDone(int32_t slot_index) const {
  const Slot& slot = slots_[slot_index];
  return slot.active && slot.reads_in_flight == 0 && (slot.blobs_left == 0 || !slot.status.ok());
}

absl::Status GatherLoop::TakeDone(int32_t slot_index) {
  ZP_CHECK(IsDone(slot_index)) << "slot " << slot_index;
  slots_[slot_index].active = false;
  std::erase(slot_order_, slot_index);
  return slots_[slot_index].status;
}

bool GatherLoop::Turn(Clock::time_point now) {
  bool progress = false;
  for (size_t source = 0; source < sources_.size(); ++source) {
    progress |= TakeCompletions(static_cast<int32_t>(source), now);
    AbandonIfStalled(static_cast<int32_t>(source), now);
  }
  for (size_t source = 0; source < sources_.size(); ++source) {
    ForgetOldPace(static_cast<int32_t>(source), now);
    progress |= StartReads(static_cast<int32_t>(source), now);
  }
  for (const int32_t slot : slot_order_) {
    GiveUpIfHopeless(slots_[slot], now);
  }
  return progress;
}

// --- Starting reads ---

void GatherLoop::ForgetOldPace(int32_t source, Clock::time_point now) {
  SourceState& state = states_[source];
  if (state.reads_in_flight() > 0 || !state.pace.is_known() ||
      now - state.pace.last_sign() <= options_.pace_lifetime) {
    return;
  }
  for (const SourceState& other : states_) {
    if (other.pace.is_known() && now - other.pace.last_sign() < options_.pace_lifetime) {
      state.pace.Forget();
      state.is_on_trial = true;
      return;
    }
  }
}

// A slice that no bank waits for: whether a source is there, and how fast, is not tried on those
// who compute.
bool GatherLoop::StartProbe(int32_t source, Clock::time_point now) {
  if (states_[source].reads_in_flight() > 0) {
    return false;
  }
  for (const int32_t slot_index : slot_order_) {
    const Slot& slot = slots_[slot_index];
    for (size_t index = 0; index < slot.blobs.size(); ++index) {
      if (Has(source, slot, slot.blobs[index])) {
        const int64_t bytes = SliceBytes(slot.blobs[index], 0);
        Issue(source,
              slot,
              {.slot = kProbe, .blob = static_cast<int32_t>(index), .slice = 0, .bytes = bytes},
              probe_bytes_.bytes().first(bytes),
              now);
        return true;
      }
    }
  }
  return false;
}

bool GatherLoop::StartReads(int32_t source, Clock::time_point now) {
  SourceState& state = states_[source];
  if (now < state.down_until) {
    return false;
  }
  if (state.is_on_trial) {
    return StartProbe(source, now);
  }
  bool started = false;
  while (state.reads_in_flight() < state.reads.size()) {
    const Choice choice = NextSlice(source, now);
    if (choice.slot == nullptr) {
      break;
    }
    StartRead(source, choice, now);
    started = true;
  }
  return started;
}

GatherLoop::Choice GatherLoop::NextSlice(int32_t source, Clock::time_point now) {
  for (const int32_t slot_index : slot_order_) {
    Slot& slot = slots_[slot_index];
    if (!slot.status.ok()) {
      continue;
    }
    while (slot.first_open_blob < slot.blobs.size() &&
           slot.blobs[slot.first_open_blob].open_slices == 0) {
      ++slot.first_open_blob;
    }
    for (size_t index = slot.first_open_blob; index < slot.blobs.size(); ++index) {
      const Blob& blob = slot.blobs[index];
      if (blob.open_slices != 0 && CanDeliver(source, slot, blob) &&
          WorthTaking(source, slot, blob, now)) {
        return {&slot, static_cast<int32_t>(index), std::countr_zero(blob.open_slices)};
      }
    }
  }
  return {};
}

bool GatherLoop::Has(int32_t source, const Slot& slot, const Blob& blob) const {
  return sources_[source].bytes != nullptr &&
         sources_[source].places[slot.layer][blob.target.expert].is_there &&
         (blob.failed_sources & Bit(source)) == 0;
}

bool GatherLoop::CanDeliver(int32_t source, const Slot& slot, const Blob& blob) const {
  return Has(source, slot, blob) && (blob.only_source < 0 || blob.only_source == source);
}

bool GatherLoop::AnyCanDeliver(const Slot& slot, const Blob& blob) const {
  for (int32_t source = 0; source < source_count(); ++source) {
    if (CanDeliver(source, slot, blob)) {
      return true;
    }
  }
  return false;
}

// Whether the source will have delivered one more slice before a faster one is through with all
// that is open. One on trial is not counted on: nobody waits for what it may never do.
bool GatherLoop::WorthTaking(int32_t source,
                             const Slot& slot,
                             const Blob& blob,
                             Clock::time_point now) const {
  const SourcePace& pace = states_[source].pace;
  const double own_seconds =
      static_cast<double>(pace.in_flight_bytes() + static_cast<int64_t>(options_.slice_bytes)) /
      pace.bytes_per_s();
  for (int32_t other = 0; other < source_count(); ++other) {
    const SourcePace& other_pace = states_[other].pace;
    if (other != source && now >= states_[other].down_until && !states_[other].is_on_trial &&
        CanDeliver(other, slot, blob) && other_pace.bytes_per_s() > pace.bytes_per_s()) {
      const double other_seconds =
          static_cast<double>(other_pace.in_flight_bytes() + slot.open_bytes) /
          other_pace.bytes_per_s();
      if (own_seconds > other_seconds) {
        return false;
      }
    }
  }
  return true;
}

void GatherLoop::StartRead(int32_t source, const Choice& choice, Clock::time_point now) {
  Slot& slot = *choice.slot;
  Blob& blob = slot.blobs[choice.blob];
  const int64_t bytes = SliceBytes(blob, choice.slice);
  if (!slot.has_read) {
    slot.has_read = true;
    slot.first_read = now;
  }
  blob.open_slices &= ~Bit(choice.slice);
  slot.open_bytes -= bytes;
  ++slot.reads_in_flight;
  const auto offset = static_cast<size_t>(choice.slice) * options_.slice_bytes;
  Issue(source,
        slot,
        {.slot = static_cast<int32_t>(&slot - slots_.data()),
         .blob = choice.blob,
         .slice = choice.slice,
         .bytes = bytes},
        blob.target.destination.subspan(offset, bytes),
        now);
}

void GatherLoop::Issue(int32_t source,
                       const Slot& slot,
                       const Read& read,
                       std::span<std::byte> destination,
                       Clock::time_point now) {
  SourceState& state = states_[source];
  const int32_t place = state.free_reads.back();
  state.free_reads.pop_back();
  state.reads[place] = read;
  state.pace.OnStart(read.bytes, now);
  const int32_t expert = slot.blobs[read.blob].target.expert;
  const BlobPlace& where = sources_[source].places[slot.layer][expert];
  sources_[source].bytes->Start(
      {.object = where.object,
       .offset = where.offset + static_cast<size_t>(read.slice) * options_.slice_bytes,
       .destination = destination,
       .token = static_cast<uint64_t>(place)});
}

// --- What comes back ---

bool GatherLoop::TakeCompletions(int32_t source, Clock::time_point now) {
  SourceState& state = states_[source];
  if (state.reads_in_flight() == 0) {
    return false;
  }
  done_.clear();
  sources_[source].bytes->Poll(done_);
  for (const fabric::SliceDone& done : done_) {
    const Read read = state.reads[done.token];
    state.free_reads.push_back(static_cast<int32_t>(done.token));
    state.pace.OnDone(read.bytes, done.error == 0 ? read.bytes : 0, now);
    if (read.slot == kProbe) {
      OnProbeDone(source, done.error, now);
      continue;
    }
    --slots_[read.slot].reads_in_flight;
    if (done.error == 0) {
      OnArrived(source, read, now);
    } else {
      OnFailed(source, read, done.error, now);
    }
  }
  return !done_.empty();
}

void GatherLoop::OnProbeDone(int32_t source, int error, Clock::time_point now) {
  if (error == 0) {
    states_[source].failures = 0;
    states_[source].is_on_trial = false;
  } else if (error != ECANCELED) {  // abandoned ones are down already
    TakeDown(source, now);
  }
}

void GatherLoop::OnArrived(int32_t source, const Read& read, Clock::time_point now) {
  Slot& slot = slots_[read.slot];
  Blob& blob = slot.blobs[read.blob];
  states_[source].failures = 0;
  if (!slot.status.ok()) {
    return;
  }
  slot.source_bytes[source] += read.bytes;
  if (++blob.arrived_slices == SliceCount(blob)) {
    CheckBlob(source, slot, blob, now);
  }
}

void GatherLoop::CheckBlob(int32_t source, Slot& slot, Blob& blob, Clock::time_point now) {
  const uint64_t checksum =
      verify_checksums_ ? base::Checksum(blob.target.destination) : blob.target.checksum;
  if (checksum == blob.target.checksum) {
    --slot.blobs_left;
    return;
  }
  const bool is_proven = blob.only_source >= 0 || sources_.size() == 1;
  blob.complaint =
      fmt::format("{}: checksum is {:016x}, it should be {:016x}",
                  is_proven ? Describe(source, slot.layer, blob.target.expert)
                            : fmt::format("layer {}, expert {}", slot.layer, blob.target.expert),
                  checksum,
                  blob.target.checksum);
  base::log::warn("{}", blob.complaint);
  if (blob.only_source >= 0) {
    blob.failed_sources |= Bit(source);
    if (sources_[source].kind == SourceKind::kPeer) {
      TakeDown(source, now);  // whatever else it has is no better
    }
  }
  ReadAgain(slot, blob, now);
}

// The whole blob again, from one source alone if one is there, so that a wrong byte has a culprit.
void GatherLoop::ReadAgain(Slot& slot, Blob& blob, Clock::time_point now) {
  blob.only_source = -1;
  if (!AnyCanDeliver(slot, blob)) {
    return Fail(slot, absl::DataLossError(blob.complaint));
  }
  for (int32_t source = source_count() - 1; source >= 0; --source) {
    const SourceState& state = states_[source];
    if (now >= state.down_until && !state.is_on_trial && Has(source, slot, blob)) {
      blob.only_source = source;
    }
  }
  blob.arrived_slices = 0;
  Reopen(slot, blob, FirstBits(SliceCount(blob)));
}

void GatherLoop::OnFailed(int32_t source, const Read& read, int error, Clock::time_point now) {
  Slot& slot = slots_[read.slot];
  Blob& blob = slot.blobs[read.blob];
  Reopen(slot, blob, Bit(read.slice));
  if (error == ECANCELED) {
    return;  // abandoned, and taken down then
  }
  blob.complaint =
      fmt::format("{}: {}", Describe(source, slot.layer, blob.target.expert), std::strerror(error));
  if (sources_[source].kind == SourceKind::kPeer) {
    TakeDown(source, now);
    return;
  }
  base::log::warn("{}", blob.complaint);
  blob.failed_sources |= Bit(source);
  if (!AnyCanDeliver(slot, blob)) {
    Fail(slot, absl::DataLossError(blob.complaint));
  }
}

void GatherLoop::Reopen(Slot& slot, Blob& blob, uint64_t slices) {
  blob.open_slices |= slices;
  for (uint64_t left = slices; left != 0; left &= left - 1) {
    slot.open_bytes += SliceBytes(blob, std::countr_zero(left));
  }
  slot.first_open_blob =
      std::min(slot.first_open_blob, static_cast<size_t>(&blob - slot.blobs.data()));
}

// --- Sources that stop ---

void GatherLoop::AbandonIfStalled(int32_t source, Clock::time_point now) {
  SourceState& state = states_[source];
  if (state.reads_in_flight() == 0 || now - state.pace.last_sign() <= options_.stall_timeout) {
    return;
  }
  if (sources_[source].kind == SourceKind::kFile && !OthersCanDeliver(source)) {
    if (!state.is_slow) {
      base::log::warn("{} is slow: no answer for {} ms",
                      sources_[source].bytes->name(),
                      options_.stall_timeout.count());
      state.is_slow = true;
    }
    return;  // there is nobody else to ask
  }
  TakeDown(source, now);
  sources_[source].bytes->Abandon();
}

// Whether what the source is reading can be had elsewhere, from one that is not lost.
bool GatherLoop::OthersCanDeliver(int32_t source) const {
  const SourceState& state = states_[source];
  for (int32_t place = 0; place < static_cast<int32_t>(state.reads.size()); ++place) {
    if (state.reads[place].slot == kProbe ||
        std::ranges::find(state.free_reads, place) != state.free_reads.end()) {
      continue;
    }
    const Slot& slot = slots_[state.reads[place].slot];
    const Blob& blob = slot.blobs[state.reads[place].blob];
    bool others = false;
    for (int32_t other = 0; other < source_count(); ++other) {
      others |= other != source && states_[other].failures == 0 && Has(other, slot, blob);
    }
    if (!others) {
      return false;
    }
  }
  return true;
}

// What was to come from this source alone may come from anywhere again: its checksum tells.
void GatherLoop::ForgetOnlySource(int32_t source) {
  for (const int32_t slot : slot_order_) {
    for (Blob& blob : slots_[slot].blobs) {
      blob.only_source = blob.only_source == source ? -1 : blob.only_source;
    }
  }
}

void GatherLoop::TakeDown(int32_t source, Clock::time_point now) {
  SourceState& state = states_[source];
  if (now < state.down_until) {
    return;  // known
  }
  const auto delay = options_.retry_delay * (1 << std::min(state.failures++, kMaxDoublings));
  base::log::warn("{} is lost; what it has comes from elsewhere, it is tried again in {} ms",
                  sources_[source].bytes->name(),
                  delay.count());
  state.down_until = now + delay;
  state.pace.Forget();  // of a time when it was there
  state.is_on_trial = true;
  ForgetOnlySource(source);
}

// A blob that only lost sources have may come yet, but not for ever.
void GatherLoop::GiveUpIfHopeless(Slot& slot, Clock::time_point now) {
  if (!slot.status.ok() || now - slot.begin < options_.give_up_timeout) {
    return;
  }
  for (const Blob& blob : slot.blobs) {
    if (blob.open_slices == 0) {
      continue;
    }
    for (int32_t source = 0; source < source_count(); ++source) {
      if (CanDeliver(source, slot, blob) && now >= states_[source].down_until) {
        return;
      }
    }
    Fail(slot,
         absl::UnavailableError(
             fmt::format("layer {}, expert {} cannot be had from anywhere: {}",
                         slot.layer,
                         blob.target.expert,
                         blob.complaint.empty() ? DescribeHolders(slot, blob) : blob.complaint)));
    return;
  }
}

void GatherLoop::Fail(Slot& slot, absl::Status status) {
  if (slot.status.ok()) {
    slot.status = std::move(status);
  }
}

GatherLoop::Clock::time_point GatherLoop::NextCheck(Clock::time_point now) const {
  Clock::time_point next = now + std::chrono::seconds(1);
  for (const SourceState& state : states_) {
    if (state.reads_in_flight() > 0) {
      next = std::min(next,
                      std::max(state.pace.last_sign() + options_.stall_timeout, now) +
                          std::chrono::milliseconds(1));
    }
    if (state.down_until > now && !slot_order_.empty()) {
      next = std::min(next, state.down_until);
    }
  }
  return next;
}

// --- Sizes and names ---

int32_t GatherLoop::SliceCount(const Blob& blob) const {
  return static_cast<int32_t>((blob.target.destination.size() + options_.slice_bytes - 1) /
                              options_.slice_bytes);
}

int64_t GatherLoop::SliceBytes(const Blob& blob, int32_t slice) const {
  const size_t begin = static_cast<size_t>(slice) * options_.slice_bytes;
  return static_cast<int64_t>(
      std::min(options_.slice_bytes, blob.target.destination.size() - begin));
}

// Of holders that said nothing at all.
std::string GatherLoop::DescribeHolders(const Slot& slot, const Blob& blob) const {
  std::string text;
  for (int32_t source = 0; source < source_count(); ++source) {
    const bool is_holder = sources_[source].places[slot.layer][blob.target.expert].is_there;
    if (is_holder) {
      text += fmt::format("{}{} {}",
                          text.empty() ? "" : ", ",
                          sources_[source].name,
                          sources_[source].bytes == nullptr ? "is not there" : "gives no answer");
    }
  }
  return text;
}

std::string GatherLoop::Describe(int32_t source, LayerIndex layer, int32_t expert) const {
  return fmt::format("{}, layer {}, expert {}", sources_[source].bytes->name(), layer, expert);
}

}  // namespace zp::experts
