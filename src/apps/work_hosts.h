// The ranks of the other hosts of the cluster, as places to bring work to: connects to each host
// that says where it takes works, and tells whoever routes when its ranks come, report and go.
//
// A rank has one id and one sink for as long as this lives, however often its host is lost and
// comes back: a host has one RemoteHost per slot, which is never taken down before the end.
//
// Thread safety: any thread. The callbacks come from a thread per host, never two at a time for one
// host: add, then reports (the first of each rank with all that it holds), then remove.
// Ownership: after Stop no callback comes, every work that was out is answered, and the sinks
// refuse; they live until the destructor. So: Stop, then take down who routes, then this.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cluster/membership.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "workplane/remote_host.h"

namespace zp::apps {

// What whoever routes wants to know of ranks; the id is RankIdOf(host, rank).
struct RankEvents {
  std::function<void(int32_t rank_id, protocol::WorkSink& sink)> add;
  std::function<void(int32_t rank_id)> remove;
  std::function<void(int32_t rank_id, const protocol::RankReport& report)> report;
};

constexpr int32_t RankIdOf(int32_t host, int32_t rank) {
  return host * cluster::kMaxRankCount + rank;
}

class WorkHosts {
 public:
  // `own_host`: is not connected to. `options.host` is set for each host.
  WorkHosts(int32_t own_host, workplane::RemoteHostOptions options, RankEvents events);
  ~WorkHosts() { Stop(); }

  // Who is there now, and where it takes works.
  void OnChange(const cluster::Membership& membership);
  void Stop();

 private:
  void Create(int32_t host);
  void Add(int32_t host, int32_t rank_count);
  void Remove(int32_t host);

  const int32_t own_host_;
  const workplane::RemoteHostOptions options_;
  const RankEvents events_;
  std::mutex mutex_;  // of OnChange and Stop
  bool is_stopped_ = false;
  std::vector<std::unique_ptr<workplane::RemoteHost>> hosts_;  // [slot]; null: never heard of
  std::vector<int32_t> rank_counts_;                           // [slot]; of the thread of that host
};

}  // namespace zp::apps
