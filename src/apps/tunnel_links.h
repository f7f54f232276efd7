// The hosts of a wind tunnel: one network namespace per rank, joined by a bridge, each with a link
// that brings and takes so many bytes a second. Needs root and the programs ip and tc (iproute2).
//
// Thread safety: one thread. Ownership: the destructor takes namespaces and bridge down.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace zp::apps {

class TunnelLinks {
 public:
  // PermissionDenied without root.
  static absl::StatusOr<std::unique_ptr<TunnelLinks>> Create(int32_t rank_count);
  ~TunnelLinks();

  // Both directions of every rank's link.
  absl::Status Shape(double bytes_per_s);

  std::string address(int32_t rank) const;
  // What to put before a command that is to run on a rank's host.
  std::vector<std::string> CommandPrefix(int32_t rank) const;

 private:
  explicit TunnelLinks(int32_t rank_count);
  absl::Status SetUp();
  std::string NamespaceOf(int32_t rank) const;
  std::string OuterEnd(int32_t rank) const;

  const int32_t rank_count_;
  const std::string name_;
};

// Gives a process a share of one core, enforced by the kernel, so that one rank's waiting does not
// speed up another.
class CpuQuota {
 public:
  // Errors: FailedPrecondition where control groups cannot be written.
  static absl::StatusOr<std::unique_ptr<CpuQuota>> Limit(pid_t pid, double cores);
  ~CpuQuota();

 private:
  explicit CpuQuota(std::string directory) : directory_(std::move(directory)) {}
  const std::string directory_;
};

}  // namespace zp::apps
