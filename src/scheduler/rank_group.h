// The ranks of one process as one place to bring work to: each work goes to the rank that will get
// to it first.
//
// Thread safety: as WorkSink. Ownership: the schedulers must outlive the group.
#pragma once

#include <vector>

#include "scheduler/scheduler.h"

namespace zp::scheduler {

class RankGroup : public protocol::WorkSink {
 public:
  // REQUIRES: at least one scheduler.
  explicit RankGroup(std::vector<Scheduler*> schedulers) : schedulers_(std::move(schedulers)) {}

  absl::Status Submit(protocol::Work work, std::stop_token cancel, Done done) override {
    return LeastBusy().Submit(std::move(work), std::move(cancel), std::move(done));
  }

 private:
  Scheduler& LeastBusy() const {
    Scheduler* least = schedulers_.front();
    double least_seconds = least->backlog_seconds();
    for (Scheduler* scheduler : schedulers_) {
      if (const double seconds = scheduler->backlog_seconds(); seconds < least_seconds) {
        least = scheduler;
        least_seconds = seconds;
      }
    }
    return *least;
  }

  const std::vector<Scheduler*> schedulers_;
};

}  // namespace zp::scheduler
