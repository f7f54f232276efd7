// This host's seat among the hosts that share a model's experts: founds the cluster or joins it,
// holds out what this host keeps, and connects the ranks to the others' memory as they come and go.
// A worker also holds its ranks out for works; the founder connects to those of the workers.
//
// Taking the seat comes first: it says what this host is to keep. Once that is loaded, Open makes
// it readable and the seat does the rest until it is destroyed.
//
// Thread safety: one thread; changes of the membership come on a thread of the cluster's.
// Ownership: the bytes and engines given to Open must outlive the seat.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "apps/work_hosts.h"
#include "base/metrics.h"
#include "base/status.h"
#include "cluster/coordinator.h"
#include "cluster/member.h"
#include "cluster/membership.h"
#include "engine/engine.h"
#include "fabric/memory_server.h"
#include "workplane/report_board.h"
#include "workplane/work_server.h"

namespace zp::apps {

struct ClusterOptions {
  // The founder's.
  int32_t host_count = 1;  // slots for hosts, itself included; 1: no cluster
  int32_t redundancy = 0;
  std::string address = "127.0.0.1";  // of the control plane; and of the weights, if not told
  uint16_t port = 0;
  std::string tls_certificate_file;
  std::string tls_key_file;
  std::string work_root_certificates_file;
  // The worker's.
  std::string coordinator;  // HOST:PORT; empty: this host founds the cluster
  std::string tls_root_certificates_file;
  std::string work_address;  // address or interface; empty: as weight_address
  uint16_t work_port = 0;
  std::string work_certificate_file;
  std::string work_key_file;
  // Both.
  std::string join_token_file;
  bool allow_plaintext = false;
  std::string weight_address;  // address or interface; empty: see above, or where the coordinator
                               // is reached from
  uint16_t weight_port = 0;
  std::string weight_transport = "tcp";

  bool is_in_use() const { return host_count > 1 || !coordinator.empty(); }
};

// --hosts, --redundancy, ...
void AddFounderFlags(CLI::App& command, ClusterOptions& options);
// --join, ...
void AddWorkerFlags(CLI::App& command, ClusterOptions& options);

class ClusterSeat {
 public:
  // What the founder gives and asks of every host, or what a worker has to give.
  struct Share {
    std::string model_fingerprint;  // engine::SharedFingerprint
    int64_t expert_memory_bytes = 0;
    int32_t rank_count = 1;
    int32_t window_slot_count = 2;  // the founder's counts
  };

  // Errors: InvalidArgument names the flag; else those of Coordinator::Start and Member::Join.
  static absl::StatusOr<std::unique_ptr<ClusterSeat>> Take(const ClusterOptions& options,
                                                           const Share& share);
  ~ClusterSeat();

  int32_t host() const { return host_; }
  // Of the names of prefixes, the same on all hosts (protocol::BlockHasher): as secret as the join
  // token, from which it follows.
  uint64_t block_key() const;
  const cluster::PlacementInputs& placement() const { return placement_; }
  // Advertisements of the other hosts whose memory can be read now.
  std::map<int32_t, std::string> peers() const;

  // A worker's, before Open, which tells the others of it: takes works for these ranks. They and
  // the board must live until StopWorks.
  absl::Status HoldOutRanks(std::vector<protocol::WorkSink*> ranks,
                            workplane::ReportBoard& board,
                            uint64_t max_held_blocks);
  // The founder's, before Open: tells of the workers' ranks. What the events use must live until
  // StopWorks; the ranks themselves live as long as the seat.
  void FollowRanks(RankEvents events);
  // Takes no more works from others and waits for the answers to those that it has; false if that
  // took longer than until `deadline`.
  bool DrainWorks(std::chrono::steady_clock::time_point deadline);
  // No work comes or goes any more; those that are out are answered Unavailable.
  void StopWorks();

  // `kept_bytes` are what HostModel::kept_bytes() says for host() and placement().
  absl::Status Open(std::span<const std::byte> kept_bytes, std::vector<engine::Engine*> engines);

 private:
  explicit ClusterSeat(ClusterOptions options) : options_(std::move(options)) {}

  absl::Status Found(const Share& share);
  absl::Status Join(const Share& share);
  absl::Status SetWeightAddress(const std::string& flag, const std::string& value);
  absl::StatusOr<std::string> WorkAddress() const;
  std::map<int32_t, std::string> PeersIn(const cluster::Membership& membership) const;
  void OnChange(const cluster::Membership& membership);
  void ConnectPeers();
  void ConnectPeer(int32_t host, const std::string& advertisement);

  const ClusterOptions options_;
  int32_t host_ = 0;
  cluster::PlacementInputs placement_;
  std::string join_token_;
  std::string model_fingerprint_;
  std::string weight_address_;

  mutable std::mutex mutex_;  // of all up to work_hosts_
  cluster::Membership membership_;
  std::vector<engine::Engine*> engines_;      // empty until Open
  std::map<int32_t, std::string> connected_;  // [host]: what the engines read from
  std::unique_ptr<WorkHosts> work_hosts_;     // the founder's
  base::Gauge& hosts_gauge_ = base::GetGauge(
      "zeroprefill_cluster_hosts", "Hosts whose expert memory is readable, this one included");
  base::Gauge& epoch_gauge_ =
      base::GetGauge("zeroprefill_cluster_epoch", "Changes of the membership, as last heard");

  // In the order of who uses whom: the last is destroyed first.
  std::unique_ptr<fabric::MemoryServer> server_;
  std::unique_ptr<workplane::WorkServer> work_server_;  // the worker's
  std::string work_target_;                             // where it listens
  std::unique_ptr<cluster::Coordinator> coordinator_;
  std::unique_ptr<cluster::Member> member_;
};

}  // namespace zp::apps
