#include "apps/work_hosts.h"

#include <utility>

#include "base/logging.h"

namespace zp::apps {

WorkHosts::WorkHosts(int32_t own_host, workplane::RemoteHostOptions options, RankEvents events)
    : own_host_(own_host),
      options_(std::move(options)),
      events_(std::move(events)),
      hosts_(cluster::kMaxHostSlots),
      rank_counts_(cluster::kMaxHostSlots) {}

void WorkHosts::OnChange(const cluster::Membership& membership) {
  std::vector<std::string> addresses(hosts_.size());
  for (const cluster::MemberHost& host : membership.hosts) {
    addresses[host.slot] = host.offer.work_address;
  }
  addresses[own_host_].clear();
  const std::lock_guard lock(mutex_);
  if (is_stopped_) {
    return;
  }
  for (int32_t host = 0; host < cluster::kMaxHostSlots; ++host) {
    if (!addresses[host].empty() && hosts_[host] == nullptr) {
      Create(host);
    }
    if (hosts_[host] != nullptr) {
      hosts_[host]->SetAddress(addresses[host]);
    }
  }
}

// It calls nobody before it has an address, so hosts_ is written by then.
void WorkHosts::Create(int32_t host) {
  workplane::RemoteHostOptions options = options_;
  options.host = host;
  hosts_[host] = workplane::RemoteHost::Create(
      std::move(options),
      {.on_up = [this](int32_t host, int32_t rank_count) { Add(host, rank_count); },
       .on_down = [this](int32_t host, const absl::Status& /*why*/) { Remove(host); },
       .on_report =
           [this](int32_t host, int32_t rank, const protocol::RankReport& report) {
             events_.report(RankIdOf(host, rank), report);
           }});
}

void WorkHosts::Add(int32_t host, int32_t rank_count) {
  base::log::info("work plane: host {} takes works on {} ranks", host, rank_count);
  rank_counts_[host] = rank_count;
  for (int32_t rank = 0; rank < rank_count; ++rank) {
    events_.add(RankIdOf(host, rank), hosts_[host]->rank(rank));
  }
}

void WorkHosts::Remove(int32_t host) {
  for (int32_t rank = 0; rank < rank_counts_[host]; ++rank) {
    events_.remove(RankIdOf(host, rank));
  }
}

void WorkHosts::Stop() {
  {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
  }
  for (const std::unique_ptr<workplane::RemoteHost>& host : hosts_) {
    if (host != nullptr) {
      host->Stop();
    }
  }
}

}  // namespace zp::apps
