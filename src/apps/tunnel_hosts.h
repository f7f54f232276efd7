// The hosts of the wind tunnel with a rank on each: started, loaded, connected, their links shaped
// to what the ranks compute.
//
// Thread safety: one thread. Ownership: the destructor ends the ranks and takes the links down.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "apps/child_process.h"
#include "apps/held_experts.h"
#include "apps/tunnel_arithmetic.h"
#include "apps/tunnel_links.h"
#include "base/status.h"
#include "boost/json.hpp"
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::apps {

struct TunnelHostsOptions {
  TunnelPlacement placement;
  std::string packed_directory;
  spec::ModelSpec spec;
  spec::DType dtype = spec::DType::kBf16;  // of weights and activations
  LinkKind links = LinkKind::kShaped;
  bool has_held_copy = true;  // all experts in memory, once for all ranks
  double bytes_per_flop = 0;
};

class TunnelHosts {
 public:
  // Errors: PermissionDenied for shaped links without root; FailedPrecondition where ranks share
  // cores and the system lets nobody set a quota.
  static absl::StatusOr<std::unique_ptr<TunnelHosts>> Start(const TunnelHostsOptions& options);

  double cores_per_rank() const { return cores_per_rank_; }
  double peak_flops_per_s() const { return peak_flops_per_s_; }  // median of the ranks
  // What a link is set to, and what a bulk transfer brings over it.
  double nominal_link_bytes_per_s() const { return peak_flops_per_s_ * options_.bytes_per_flop; }
  double link_bytes_per_s() const { return link_bytes_per_s_; }
  // Of both ranks that the transfer is between; what the kernel does in nobody's name is not in it.
  double link_cpu_s_per_gb() const { return link_cpu_s_per_gb_; }
  // Below the held copy.
  double huge_page_fraction() const { return copies_ ? copies_->huge_page_fraction() : 0; }

  // commands[rank] to the first ranks, all at once; then their answers.
  absl::StatusOr<std::vector<boost::json::object>> TellEach(
      const std::vector<std::string>& commands);

 private:
  explicit TunnelHosts(const TunnelHostsOptions& options) : options_(options) {}
  absl::Status SetUp();
  absl::Status StartRank(int32_t rank);
  absl::Status LoadRanks();
  absl::Status MeasureLink(const std::string& advertisement);
  absl::Status ConnectRanks(const std::vector<std::string>& advertisements);
  absl::StatusOr<std::vector<boost::json::object>> TellAll(const std::string& command);
  absl::StatusOr<boost::json::object> AnswerOf(int32_t rank);

  const TunnelHostsOptions options_;
  double cores_per_rank_ = 1;
  double peak_flops_per_s_ = 0;
  double link_bytes_per_s_ = 0;
  double link_cpu_s_per_gb_ = 0;
  std::unique_ptr<ExpertCopies> copies_;
  std::unique_ptr<TunnelLinks> links_;
  std::vector<std::unique_ptr<CpuQuota>> quotas_;  // end after the ranks
  std::vector<std::unique_ptr<ChildProcess>> ranks_;
};

}  // namespace zp::apps
