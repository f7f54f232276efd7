#include "base/trace.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <utility>

#include "base/logging.h"
#include "fmt/format.h"

namespace zp::base {
namespace {

double Microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

// The elements of the file's one list.
class EventList {
 public:
  explicit EventList(const std::string& path) : file_(path) { file_ << "{\"traceEvents\":["; }

  void Add(const std::string& element) {
    file_ << separator_ << element;
    separator_ = ",\n";
  }

  bool Finish() {
    file_ << "]}\n";
    file_.flush();
    return file_.good();
  }

 private:
  std::ofstream file_;
  const char* separator_ = "\n";
};

}  // namespace

Trace::Trace(size_t capacity) : start_(std::chrono::steady_clock::now()), events_(capacity) {}

void Trace::Add(const TraceEvent& event) {
  const size_t index = count_.fetch_add(1, std::memory_order_relaxed);
  if (index < events_.size()) {
    events_[index] = event;
  }
}

absl::Status Trace::Write(const std::string& path) const {
  const size_t added = count_.load();
  const size_t kept = std::min(added, events_.size());
  if (kept < added) {
    log::warn("trace: {} events of {} did not fit", added - kept, added);
  }
  EventList list(path);
  std::map<std::pair<int32_t, std::string_view>, int> track_ids;
  for (size_t i = 0; i < kept; ++i) {
    const TraceEvent& event = events_[i];
    const auto [track, is_new] =
        track_ids.try_emplace({event.rank, event.track}, static_cast<int>(track_ids.size()));
    if (is_new) {
      list.Add(fmt::format(
          R"({{"ph":"M","name":"process_name","pid":{0},"args":{{"name":"rank {0}"}}}})",
          event.rank));
      list.Add(fmt::format(
          R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":"{}"}}}})",
          event.rank,
          track->second,
          event.track));
    }
    list.Add(fmt::format(R"({{"ph":"X","name":"{}","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},)"
                         R"("args":{{"layer":{},"bytes":{}}}}})",
                         event.name,
                         event.rank,
                         track->second,
                         Microseconds(event.begin - start_),
                         Microseconds(event.end - event.begin),
                         event.layer,
                         event.bytes));
  }
  if (!list.Finish()) {
    return absl::UnknownError(fmt::format("{}: cannot be written", path));
  }
  return absl::OkStatus();
}

}  // namespace zp::base
