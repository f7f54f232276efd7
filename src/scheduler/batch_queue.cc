#include "scheduler/batch_queue.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "base/check.h"
#include "scheduler/ahead_works.h"
#include "scheduler/waiting_line.h"

namespace zp::scheduler {
namespace {

// Works that a batch may pass over before it is closed: bounds the search for what still fits.
constexpr int kMaxPassedOver = 32;
// A work that is longer than all that is in a batch joins one that has reached T* only up to this
// share of the limit, or up to so many T*: the shorter ones in it would wait for more.
constexpr int64_t kLongerShare = 4;
constexpr double kGathersPerPass = 2;
// A work that needs several passes takes a place in a batch only where there is this share of it
// left: each time the prefix that its sequences share is computed anew.
constexpr int64_t kLeastRoomShare = 4;
// Works looked at for cancellation whenever a batch is taken, and as many more as it has.
constexpr size_t kLeastSweep = 16;

}  // namespace

struct BatchQueue::State {
  using Entry = WaitingEntry;

  // A batch that is being formed.
  struct Filling {
    uint64_t number = 0;
    std::vector<Entry*> entries;
    DistinctTokens distinct;
    double flops = 0;
    Place last_key;  // of all in it, the one that came last in the order
  };

  explicit State(const BatchQueueOptions& queue_options)
      : options(queue_options),
        line(queue_options.ageing),
        ahead(queue_options.held, queue_options.max_held_tokens) {}

  void AppendBlocks(const Entry& entry, std::vector<protocol::BlockHash>& names) const;
  protocol::AwaitedChanges TakeAwaited();
  void Forget(Entry& entry);
  void Drop(Entry& entry, DropReason reason);
  void DropExpired(TimePoint now);
  void SweepCancelled(size_t count);
  void Fill(Filling& filling, uint64_t running_batch);
  void GoOn(Entry& entry);
  bool MayGoNow(const Entry& entry) const;
  bool IsDue(const Entry& entry) const { return admitted_flops > entry.place.due; }
  int32_t TakeParts(Entry& entry, Filling& filling);
  bool MayStep(const Entry& entry, const Filling& filling) const;
  bool MustFormAnew() const;
  void Unprepare();
  Batch Finish(const Filling& filling);

  const BatchQueueOptions options;
  double flops_per_s = 0;
  double saturation_flops = 0;

  absl::flat_hash_map<uint64_t, std::unique_ptr<Entry>> entries;  // by id
  absl::btree_map<uint64_t, Entry*> by_arrival;
  absl::btree_map<std::pair<TimePoint, uint64_t>, Entry*> by_deadline;
  WaitingLine line;
  AheadWorks ahead;
  double admitted_flops = 0;
  double waiting_flops = 0;
  uint64_t next_number = 1;
  uint64_t next_batch = 1;
  uint64_t last_batch = 0;  // that was taken
  uint64_t sweep_cursor = 0;
  int64_t new_ahead_count = 0;  // entries whose AheadState is_new
  std::optional<Filling> prepared;
  std::optional<Place> first_late;  // of those added since `prepared` was formed
  std::vector<DroppedWork> dropped;
  // Works up to this number were told to be waiting, with the batch before.
  uint64_t last_awaited = 0;
  std::vector<protocol::BlockHash> awaited_ended;  // of those, since then
};

// The entry's blocks, each as often as its parts had it when it came: what goes with the last part
// after all is in two of them.
void BatchQueue::State::AppendBlocks(const Entry& entry,
                                     std::vector<protocol::BlockHash>& names) const {
  if (options.max_held_tokens == 0) {
    return;
  }
  const int32_t ahead_count = entry.work.ahead_count;
  const int32_t rest_begin = entry.ahead.rest_begin >= 0 ? entry.ahead.rest_begin : ahead_count;
  for (int32_t part = 0; part < std::ssize(entry.work.parts); ++part) {
    if (part < rest_begin || part >= ahead_count) {
      std::ranges::transform(
          entry.work.parts[part].blocks, std::back_inserter(names), &TokenBlock::name);
    }
  }
}

// What came and went since the batch before was never told of: what is kept here is bounded by what
// waited then.
protocol::AwaitedChanges BatchQueue::State::TakeAwaited() {
  protocol::AwaitedChanges changes;
  for (auto next = by_arrival.upper_bound(last_awaited); next != by_arrival.end(); ++next) {
    AppendBlocks(*next->second, changes.begun);
  }
  last_awaited = next_number - 1;
  changes.ended = std::exchange(awaited_ended, {});
  return changes;
}

// Of an entry that is in no prepared batch.
void BatchQueue::State::Forget(Entry& entry) {
  if (entry.has_parts()) {
    line.Leave(entry);
  }
  if (entry.number <= last_awaited) {
    AppendBlocks(entry, awaited_ended);
  }
  ahead.GiveRoomBack(entry);
  waiting_flops -= entry.remaining_flops;
  new_ahead_count -= entry.ahead.is_new ? 1 : 0;
  by_arrival.erase(entry.number);
  if (entry.work.deadline.has_value()) {
    by_deadline.erase({*entry.work.deadline, entry.number});
  }
  entries.erase(entry.work.id);  // destroys it
  if (entries.empty()) {
    waiting_flops = 0;  // rounding must not add up
  }
}

void BatchQueue::State::Drop(Entry& entry, DropReason reason) {
  dropped.push_back({.id = entry.work.id, .reason = reason});
  Forget(entry);
}

void BatchQueue::State::DropExpired(TimePoint now) {
  while (!by_deadline.empty() && by_deadline.begin()->first.first < now) {
    Entry& entry = *by_deadline.begin()->second;
    if (entry.prepared_parts > 0) {
      Unprepare();  // only then: to form a batch anew for each client that gives up takes all day
    }
    Drop(entry, DropReason::kExpired);
  }
}

// The next `count` works in a round through all: what clients left behind goes before its turn,
// at a price that does not grow with the queue.
void BatchQueue::State::SweepCancelled(size_t count) {
  for (size_t i = std::min(count, by_arrival.size()); i > 0; --i) {
    auto next = by_arrival.upper_bound(sweep_cursor);
    next = next == by_arrival.end() ? by_arrival.begin() : next;
    if (next == by_arrival.end()) {
      return;
    }
    sweep_cursor = next->first;
    Entry& entry = *next->second;
    if (entry.prepared_parts == 0 && entry.work.cancel.stop_requested()) {
      Drop(entry, DropReason::kCancelled);
    }
  }
}

// What the batch `running_batch` computes ahead is not held yet; 0: none runs.
void BatchQueue::State::Fill(Filling& filling, uint64_t running_batch) {
  Candidates candidates(line);
  int passed_over = 0;
  while (passed_over < kMaxPassedOver) {
    Entry* const entry = candidates.Next();
    if (entry == nullptr) {
      return;
    }
    if (entry->seen_by_batch == filling.number) {
      continue;
    }
    if (entry->work.cancel.stop_requested()) {
      Drop(*entry, DropReason::kCancelled);
      continue;
    }
    if (running_batch == 0 || entry->ahead.last_batch != running_batch) {
      GoOn(*entry);
    }
    if (!MayGoNow(*entry)) {
      // Once, however many of its families were called. It may yet go: when who is due has.
      passed_over += std::exchange(entry->refused_by_batch, filling.number) != filling.number;
      continue;
    }
    entry->seen_by_batch = filling.number;
    const bool may_step = MayStep(*entry, filling);
    line.Leave(*entry);
    const PartCost& first_part = entry->part();
    entry->prepared_parts = may_step ? TakeParts(*entry, filling) : 0;
    if (entry->prepared_parts == 0) {
      line.Enter(*entry);
      ++passed_over;
      continue;
    }
    filling.entries.push_back(entry);
    filling.last_key = filling.entries.size() == 1
                           ? candidates.last_key()
                           : std::max(filling.last_key, candidates.last_key());
    candidates.Call(first_part);
  }
}

// What the cache holds of the entry is not computed again; what it has lost is.
void BatchQueue::State::GoOn(Entry& entry) {
  if (ahead.IsNext(entry, entry.next_part)) {
    return;
  }
  line.Leave(entry);
  waiting_flops -= entry.remaining_flops;
  ahead.GoOn(entry);
  waiting_flops += entry.remaining_flops;
  line.Enter(entry);
}

// The bound of batch_queue.h: nobody whose turn is due is overtaken, nor a better priority at all.
bool BatchQueue::State::MayGoNow(const Entry& entry) const {
  const Place& first = line.first();
  return entry.work.priority == first.priority && entry.admitted_flops <= first.due;
}

// Moves as many of the entry's next parts as fit; returns how many.
int32_t BatchQueue::State::TakeParts(Entry& entry, Filling& filling) {
  const int64_t room = options.max_batch_tokens - filling.distinct.count();
  const bool is_cut_anywhere = entry.work.parts.size() > 1 && entry.work.ahead_count == 0;
  if (!filling.entries.empty() && is_cut_anywhere &&
      room < options.max_batch_tokens / kLeastRoomShare) {
    return 0;
  }
  const bool is_ahead = entry.work.ahead_count > 0;
  const int32_t most_parts = is_ahead ? 1 : INT32_MAX;
  const double most_flops = is_ahead ? entry.part().flops : entry.remaining_flops;
  const bool is_longest = !filling.entries.empty() && most_flops > filling.flops;
  const bool must_go = filling.entries.empty() || IsDue(entry);
  int32_t part_count = 0;
  for (; entry.has_parts() && part_count < most_parts; ++entry.next_part, ++part_count) {
    const PartCost& part = entry.part();
    const int64_t tokens = CountTokens(part.blocks);
    const int64_t new_tokens = filling.distinct.CountNew(part.blocks);
    const double new_flops =
        part.flops * static_cast<double>(new_tokens) / static_cast<double>(tokens);
    const int64_t then_tokens = filling.distinct.count() + new_tokens;
    const bool exceeds_limit =
        filling.distinct.count() > 0 && then_tokens > options.max_batch_tokens;
    const bool lengthens_pass = then_tokens > options.max_batch_tokens / kLongerShare &&
                                filling.flops >= saturation_flops &&
                                filling.flops + new_flops > kGathersPerPass * saturation_flops;
    if (exceeds_limit || (is_longest && lengthens_pass) ||
        !ahead.SetRoomApart(entry, /*is_shared=*/new_tokens == 0, must_go)) {
      break;
    }
    filling.distinct.Add(part.blocks);
    filling.flops += new_flops;
    entry.remaining_flops -= part.flops;
  }
  return part_count;
}

// A part that is computed ahead makes the pass longer for all in it, and saves a pass for which all
// n works of its kind would wait: with p parts a pass that is p against n / p, least at sqrt(n). So
// it joins a batch that costs no more than sqrt(n) such parts. One whose turn is due goes, or it
// would bar who came after it.
bool BatchQueue::State::MayStep(const Entry& entry, const Filling& filling) const {
  const bool is_step = entry.ahead.is_new && entry.next_part < entry.work.ahead_count;
  return !is_step || IsDue(entry) ||
         filling.flops <= std::sqrt(static_cast<double>(new_ahead_count)) * entry.part().flops;
}

void BatchQueue::State::Unprepare() {
  if (!prepared.has_value()) {
    return;
  }
  for (Entry* const entry : prepared->entries) {
    for (; entry->prepared_parts > 0; --entry->prepared_parts) {
      --entry->next_part;
      entry->remaining_flops += entry->part().flops;
    }
    if (entry->ahead.last_part < 0) {
      ahead.GiveRoomBack(*entry);
    }
    line.Enter(*entry);
  }
  prepared.reset();
  first_late.reset();
}

// Whether the prepared batch is not what would be formed now.
bool BatchQueue::State::MustFormAnew() const {
  if (first_late.has_value() && *first_late < prepared->last_key) {
    return true;
  }
  return std::any_of(prepared->entries.begin(), prepared->entries.end(), [&](const Entry* entry) {
    return entry->work.cancel.stop_requested() ||
           !ahead.IsNext(*entry, entry->next_part - entry->prepared_parts);
  });
}

Batch BatchQueue::State::Finish(const Filling& filling) {
  Batch batch = {.distinct_tokens = filling.distinct.count(), .flops = filling.flops};
  batch.works.reserve(filling.entries.size());
  for (Entry* const entry : filling.entries) {
    batch.works.push_back({.id = entry->work.id,
                           .first_part = entry->next_part - entry->prepared_parts,
                           .part_count = entry->prepared_parts,
                           .is_last = !entry->has_parts()});
    for (int32_t part = 1; part <= entry->prepared_parts; ++part) {
      batch.asked_flops += entry->work.parts[entry->next_part - part].flops;
    }
    if (entry->next_part <= entry->work.ahead_count) {
      entry->ahead.last_part = entry->next_part - 1;
      entry->ahead.last_batch = filling.number;
    }
    entry->prepared_parts = 0;
  }
  waiting_flops -= batch.asked_flops;
  last_batch = filling.number;
  for (Entry* const entry : filling.entries) {
    if (entry->has_parts()) {
      line.Enter(*entry);
    } else {
      waiting_flops += entry->remaining_flops;  // rounding; Forget takes it off again
      Forget(*entry);
    }
  }
  return batch;
}

BatchQueue::BatchQueue(const BatchQueueOptions& options)
    : state_(std::make_unique<State>(options)) {}

BatchQueue::~BatchQueue() = default;

void BatchQueue::Add(WaitingWork work) {
  State& state = *state_;
  ZP_CHECK(!work.parts.empty()) << work.id;
  ZP_CHECK(work.ahead_count == 0 || work.ahead_count + 1 == std::ssize(work.parts)) << work.id;
  auto entry = std::make_unique<WaitingEntry>();
  for (const PartCost& part : work.parts) {
    ZP_CHECK(!part.blocks.empty()) << work.id;
    entry->remaining_flops += part.flops;
  }
  entry->work = std::move(work);
  state.ahead.GoOn(*entry);
  entry->ahead.is_new = entry->next_part < entry->work.ahead_count;
  state.admitted_flops += entry->remaining_flops;
  state.waiting_flops += entry->remaining_flops;
  state.new_ahead_count += entry->ahead.is_new ? 1 : 0;
  entry->admitted_flops = state.admitted_flops;
  entry->number = state.next_number++;
  state.by_arrival[entry->number] = entry.get();
  if (entry->work.deadline.has_value()) {
    state.by_deadline[{*entry->work.deadline, entry->number}] = entry.get();
  }
  state.line.Enter(*entry);
  if (state.prepared.has_value()) {
    state.first_late = std::min(state.first_late.value_or(entry->place), entry->place);
  }
  const uint64_t id = entry->work.id;
  ZP_CHECK(state.entries.emplace(id, std::move(entry)).second) << id;
}

bool BatchQueue::Remove(uint64_t id) {
  const auto found = state_->entries.find(id);
  if (found == state_->entries.end()) {
    return false;
  }
  WaitingEntry& entry = *found->second;
  if (entry.prepared_parts > 0) {
    state_->Unprepare();
  }
  state_->Forget(entry);
  return true;
}

std::vector<uint64_t> BatchQueue::RemoveAll() {
  state_->Unprepare();
  std::vector<uint64_t> ids;
  ids.reserve(state_->entries.size());
  while (!state_->by_arrival.empty()) {
    WaitingEntry& entry = *state_->by_arrival.begin()->second;
    ids.push_back(entry.work.id);
    state_->Forget(entry);
  }
  return ids;
}

void BatchQueue::SetSpeed(double flops_per_s, double saturation_flops) {
  state_->flops_per_s = flops_per_s;
  state_->saturation_flops = saturation_flops;
}

std::optional<TimePoint> BatchQueue::StartTime() const {
  const State& state = *state_;
  if (state.entries.empty()) {
    return std::nullopt;
  }
  TimePoint start = state.by_arrival.begin()->second->work.arrival;
  if (state.waiting_flops >= state.saturation_flops) {
    return start;
  }
  start += state.options.max_hold;
  if (!state.by_deadline.empty()) {
    // The answer is to be there by then, not the start.
    const double pass_seconds =
        state.flops_per_s > 0 ? std::min(state.waiting_flops / state.flops_per_s, 3600.0) : 0;
    const auto pass_time = std::chrono::duration_cast<TimePoint::duration>(
        std::chrono::duration<double>(pass_seconds));
    start = std::min(start, state.by_deadline.begin()->first.first - pass_time);
  }
  return start;
}

std::optional<TimePoint> BatchQueue::FirstDeadline() const {
  return state_->by_deadline.empty() ? std::nullopt
                                     : std::optional(state_->by_deadline.begin()->first.first);
}

void BatchQueue::DropExpired(TimePoint now) { state_->DropExpired(now); }

void BatchQueue::Prepare(TimePoint now) {
  State& state = *state_;
  if (state.prepared.has_value()) {
    return;
  }
  state.DropExpired(now);
  State::Filling filling = {.number = state.next_batch++};
  state.Fill(filling, state.last_batch);
  if (!filling.entries.empty()) {
    state.prepared = std::move(filling);
  }
}

bool BatchQueue::is_prepared() const { return state_->prepared.has_value(); }

Batch BatchQueue::Take(TimePoint now) {
  State& state = *state_;
  state.DropExpired(now);
  if (state.prepared.has_value() && state.MustFormAnew()) {
    state.Unprepare();
  }
  State::Filling filling = {.number = state.next_batch};
  const bool is_prepared = state.prepared.has_value();
  if (is_prepared) {
    filling = *std::exchange(state.prepared, std::nullopt);
  } else {
    ++state.next_batch;
  }
  if (!is_prepared || state.first_late.has_value()) {
    state.Fill(filling, /*running_batch=*/0);
  }
  state.first_late.reset();
  Batch batch = state.Finish(filling);
  state.SweepCancelled(kLeastSweep + 2 * batch.works.size());
  if (!batch.works.empty()) {  // else nobody would hear it
    batch.awaited = state.TakeAwaited();
  }
  return batch;
}

std::vector<DroppedWork> BatchQueue::TakeDropped() { return std::exchange(state_->dropped, {}); }

size_t BatchQueue::work_count() const { return state_->entries.size(); }

double BatchQueue::waiting_flops() const { return state_->waiting_flops; }

}  // namespace zp::scheduler
